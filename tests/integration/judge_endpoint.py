"""A judge that dies and comes back under the same address."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import httpx
from judge_server import closed_port


class Endpoint:
    """The oracle on a port of its own, which can be killed and started again."""

    def __init__(self) -> None:
        self.port = closed_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start; see `wait`."""
        command = [sys.executable, "-m", "judge.local_server", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(600):
            try:
                httpx.get(f"{self.url}/models", trust_env=False)
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the oracle did not start")

    def hang(self) -> None:
        """Accept connections and never reply."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Reply again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, with the calls that it has."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
