"""A judge as a process on this machine: the oracle, or the lexical one.

`LocalServer` runs it beside a job; `python -m judge.local_server --config '{"kind": "lexical"}'` by hand. The process
ends with the one that started it, also when that one is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mrpo.choices import LOCAL_KINDS, JudgeKind
from mrpo.config import JudgeConfig, OracleConfig, plain
from mrpo.errors import ConfigError, JudgeUnavailableError

if TYPE_CHECKING:
    from fastapi import FastAPI

START_TIMEOUT_S = 60.0  # importing the server takes a second; beside engines that load, much longer
STOP_TIMEOUT_S = 5.0
PARENT_POLL_S = 0.5
KEEP_ALIVE_S = 75  # above the client's 5 s, so that the server never closes a connection that is about to be used


class LocalServer:
    """A local judge in its own process; a context manager, or `start` and `close`."""

    def __init__(self, config: JudgeConfig, *, seed: int = 0, host: str = "127.0.0.1") -> None:
        """Describe the server; `start` runs it.

        Args:
            config: `kind` is one of `LOCAL_KINDS`, with its settings.
            seed: of the oracle's faults.
            host: address to listen on; judge actors on other machines need one they can reach.
        """
        assert config.kind in LOCAL_KINDS, config.kind
        self._config = config
        self._seed = seed
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""  # base URL ending in /v1, once started

    def start(self) -> Self:
        """Start the process and wait until it listens.

        Raises:
            JudgeUnavailableError: it ended or said nothing within a minute.
        """
        arguments = ["--host", self._host, "--port", "0", "--seed", str(self._seed), "--parent-pid", str(os.getpid())]
        settings = json.dumps(plain(self._config))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "judge.local_server", *arguments, "--config", settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the run alone, which still needs its judge to stop in order
        )
        try:
            self.url = _read_line(self._process, START_TIMEOUT_S, self._config.kind)
        except JudgeUnavailableError:
            self.close()
            raise
        return self

    def endpoint(self) -> JudgeConfig:
        """The judge configuration with this server as its endpoint."""
        assert self.url, "the server is not started"
        return replace(self._config, url=self.url, model=self._config.kind.value)

    def close(self) -> None:
        """End the process; safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_line(process: subprocess.Popen[bytes], timeout_s: float, kind: JudgeKind) -> str:
    """The first line the process writes."""
    assert process.stdout is not None
    ends_at = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            left_s = ends_at - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise JudgeUnavailableError(
                    f"the {kind} judge did not start within {timeout_s:g} s; is the machine busy?"
                )
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                code = process.wait()
                raise JudgeUnavailableError(
                    f"the {kind} judge ended with code {code} while starting; see its output above"
                )
            line += chunk
    return line.decode().strip()


def _exit_with_parent(pid: int) -> None:
    """End this process soon after its parent has ended, however it ended.

    Polling, because PR_SET_PDEATHSIG fires when the *thread* that started the process ends.
    """
    while os.getppid() == pid:
        time.sleep(PARENT_POLL_S)
    os._exit(0)


def app_of(config: JudgeConfig, *, seed: int) -> FastAPI:
    """The judge that `config.kind` names.

    Raises:
        ConfigError: it is none that runs here, or the shares of faults add up to more than 1.
    """
    from judge.local_app import build_app

    model = config.kind.value
    if config.kind == JudgeKind.ORACLE:
        from judge.oracle import Oracle

        return build_app(Oracle(), model=model, faults=config.oracle, seed=seed)
    if config.kind == JudgeKind.LEXICAL:
        from judge.lexical import LexicalJudge

        return build_app(LexicalJudge(config.lexical), model=model, faults=OracleConfig(), seed=seed)
    raise ConfigError(f"kind={model} is no judge that runs here; use one of {', '.join(LOCAL_KINDS)}")


def serve(config: JudgeConfig, *, seed: int, host: str, port: int, parent_pid: int | None) -> None:
    """Listen, write the base URL to stdout, and serve until a signal or the parent's end.

    Raises:
        ConfigError: see `app_of`.
        OSError: host and port cannot be listened on.
    """
    import uvicorn

    app = app_of(config, seed=seed)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE_S, lifespan="off")
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    address = f"[{host}]" if family == socket.AF_INET6 else host
    if parent_pid is not None:
        threading.Thread(target=_exit_with_parent, args=(parent_pid,), daemon=True).start()
    # Connections queue from here on, so the URL can be used at once.
    sys.stdout.write(f"http://{address}:{listener.getsockname()[1]}/v1\n")
    sys.stdout.flush()
    server.run(sockets=[listener])


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m judge.local_server", description="A judge on this machine.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port, written to stdout")
    parser.add_argument("--seed", type=int, default=0, help="of the oracle's faults")
    parser.add_argument("--config", default="{}", help="settings as JSON, keys as under `judge`; the kind first of all")
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this parent process has ended")
    given = parser.parse_args(arguments)
    config = JudgeConfig(**json.loads(given.config))
    serve(config, seed=given.seed, host=given.host, port=given.port, parent_pid=given.parent_pid)


if __name__ == "__main__":
    main()
