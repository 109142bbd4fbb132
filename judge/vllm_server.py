"""A judge served by vLLM's own OpenAI server, as a process of this machine that ends with whoever started it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from judge.api_key import DEFAULT_KEY_ENV
from mrpo.config import VllmJudgeConfig
from mrpo.errors import JudgeUnavailableError

POLL_S = 0.5
PROBE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 20.0  # above what the supervisor gives the server
TAIL_LINES = 15
CPU_CACHE_BYTES = 256 * 2**20  # of keys and values; what runs on a CPU is a toy
CPU_SEQUENCES = 32
Command = Callable[[int], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSpec:
    """Everything one server needs to know. Made by the composition root; crosses to its actor."""

    name: str  # in logs and errors
    model: str  # Hugging Face folder, readable on the server's node
    served_name: str  # what requests call it
    settings: VllmJudgeConfig
    on_gpu: bool
    log_file: str  # on the server's node


def server_command(spec: VllmSpec, *, host: str, port: int) -> list[str]:
    """vLLM's command line."""
    settings = spec.settings
    options: dict[str, str] = {
        "served-model-name": spec.served_name,
        "host": host,
        "port": str(port),
        "max-model-len": str(settings.max_model_len),
        "tensor-parallel-size": str(settings.tensor_parallel),
        "limit-mm-per-prompt": json.dumps({"image": 1, "video": 0}),
        # Spaces are no part of a verdict, and a weak model can fill its reply with them.
        "structured-outputs-config": json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
        "generation-config": "vllm",  # the checkpoint's own would bring sampling of its own
        "seed": "0",
    }
    if spec.on_gpu:
        options |= {"dtype": "auto", "gpu-memory-utilization": f"{settings.gpu_memory_utilization:g}"}
    else:
        options |= {
            "dtype": "float32",
            "kv-cache-memory-bytes": str(CPU_CACHE_BYTES),
            "max-num-seqs": str(CPU_SEQUENCES),
        }
    flags = ["enable-prefix-caching", "enable-prompt-tokens-details", "disable-uvicorn-access-log"]
    flags += [] if spec.on_gpu else ["enforce-eager"]
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [
        # What `vllm serve` starts; the command itself asks for a package named vllm, as the CPU's is not.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", spec.model),
        *given,
        *(f"--{name}" for name in flags),
    ]


def server_environment(spec: VllmSpec) -> dict[str, str]:
    """Environment of the server beside what this process has."""
    environment = {
        "HF_HUB_OFFLINE": "1",  # the model is a local folder; nothing may wait for a network that is not there
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not spec.on_gpu:
        environment |= {
            # Engines and learner are on the same cores; vLLM would bind itself to the first of them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_HOST_IP": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment


def _without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """vLLM would ask every call for `VLLM_API_KEY`, which none brings; the judge's own key is not its business."""
    return {name: value for name, value in environment.items() if name not in ("VLLM_API_KEY", DEFAULT_KEY_ENV)}


class VllmServer:
    """One server; `start` and `close`."""

    def __init__(self, spec: VllmSpec, *, host: str, command: Command | None = None, port: int | None = None) -> None:
        """Describe the server; `start` runs it.

        Args:
            spec: what is served.
            host: address of this machine to listen on, as those who ask reach it.
            command: another server's command line, given a port; None: vLLM's.
            port: to listen on; None: a free one.
        """
        self.spec = spec
        self._command = command or (lambda port: server_command(spec, host=host, port=port))
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        self._port = port

    @property
    def url(self) -> str:
        """Base URL ending in /v1."""
        return f"{self._root}/v1"

    @property
    def _root(self) -> str:
        assert self._port is not None, "the server is not started"
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, give_up: Callable[[], bool] = lambda: False) -> None:
        """Start the process, on the port it had before if it had one, and wait until it is healthy.

        Args:
            give_up: asked while waiting; true ends the wait as a failure.

        Raises:
            JudgeUnavailableError: it ended, or was not healthy within `judge.vllm.start_timeout_s`.
        """
        if self._port is None:
            self._port = _free_port(self._host)
        log_path = Path(self.spec.log_file)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = self._process = self._spawn(log)  # `close` may be called while this waits
        ends_at = time.monotonic() + self.spec.settings.start_timeout_s
        with httpx.Client(timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
            while not self._is_healthy(client):
                code = process.poll()
                if code is not None:
                    raise JudgeUnavailableError(self._trouble(f"ended with code {code} while starting"))
                if time.monotonic() > ends_at or give_up():
                    self.close()
                    seconds = self.spec.settings.start_timeout_s
                    raise JudgeUnavailableError(
                        self._trouble(f"was not ready within judge.vllm.start_timeout_s={seconds:g} s")
                    )
                time.sleep(POLL_S)

    def answers(self, timeout_s: float) -> bool:
        """Whether it is healthy and its model makes a token: `/health` alone says nothing of a GPU that hangs.

        Args:
            timeout_s: for either.
        """
        token = {"model": self.spec.served_name, "prompt": "a", "max_tokens": 1}
        with httpx.Client(timeout=timeout_s, trust_env=False) as client:
            try:
                if not self._is_healthy(client):
                    return False
                client.post(f"{self.url}/completions", json=token)
                return True
            except httpx.HTTPError:
                return False

    def close(self) -> None:
        """End it and all its processes; safe to call twice."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the supervisor leads the group
            process.wait()

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        assert self._port is not None
        return subprocess.Popen(
            [sys.executable, "-m", "judge.vllm_supervisor", str(os.getpid()), *self._command(self._port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_without_keys(os.environ) | server_environment(self.spec),
            start_new_session=True,
        )

    def _is_healthy(self, client: httpx.Client) -> bool:
        try:
            return client.get(f"{self._root}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _trouble(self, what: str) -> str:
        """What happened, and the end of the log."""
        settings = self.spec.settings
        return (
            f"{self.spec.name} (vLLM with {self.spec.model}) {what}; see {self.spec.log_file}, lower "
            f"judge.vllm.max_model_len={settings.max_model_len}, or serve the judge yourself and set "
            f"judge=openai_compatible. The log ends with:\n{_tail(Path(self.spec.log_file))}"
        )


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
