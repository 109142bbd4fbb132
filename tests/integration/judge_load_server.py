"""A judge in a process of its own with latency and random faults, cheap enough to be no bottleneck; it counts.

`python -m tests.integration.judge_load_server '{"latency_s": 0.3, …}'` writes its base URL, serves until stdin closes.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

GARBAGE = "Certainly! Here are my marks: {"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How it answers."""

    latency_s: float = 0.3
    seed: int = 0
    rate_limited: float = 0.05  # share of 429
    errors: float = 0.05  # of 500
    hangs: float = 0.05  # never answered
    garbage: float = 0.05
    retry_after: str | None = None  # header of a 429


@dataclass(kw_only=True)
class Seen:
    """What the server counted."""

    arrived_s: list[float] = field(default_factory=list)  # time.time() of each request
    busy_s: float = 0.0  # sum over requests, from arrival to reply or hang-up
    in_flight: int = 0
    max_in_flight: int = 0

    def most_within(self, seconds: float) -> int:
        """The most requests that arrived in any window of this length."""
        most = first = 0
        for last, at_s in enumerate(self.arrived_s):
            while at_s - self.arrived_s[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, faults: Faults, seen: Seen, rng: random.Random) -> None:
        self._faults, self._seen, self._rng = faults, seen, rng
        self._buffer = b""
        self._began_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, split, body = self._buffer.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if split and len(body) >= length:
            self._buffer = b""
            self._begin(head, body)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end()

    def _begin(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            self._send(200, asdict(self._seen))
            return
        self._began_s = time.time()
        self._seen.arrived_s.append(self._began_s)
        self._seen.in_flight += 1
        self._seen.max_in_flight = max(self._seen.max_in_flight, self._seen.in_flight)
        draw, faults = self._rng.random(), self._faults
        if draw < faults.hangs:
            return
        self._timer = asyncio.get_running_loop().call_later(faults.latency_s, self._answer, draw - faults.hangs, body)

    def _answer(self, draw: float, body: bytes) -> None:
        faults = self._faults
        self._end()
        if draw < faults.rate_limited:
            header = f"retry-after: {faults.retry_after}\r\n" if faults.retry_after is not None else ""
            self._send(429, {"error": "busy"}, header)
        elif draw < faults.rate_limited + faults.errors:
            self._send(500, {"error": "broken"})
        else:
            is_garbage = draw < faults.rate_limited + faults.errors + faults.garbage
            self._send(200, _completion(GARBAGE if is_garbage else _marks(body)))

    def _end(self) -> None:
        if self._began_s is not None:
            self._seen.busy_s += time.time() - self._began_s
            self._seen.in_flight -= 1
            self._began_s = None

    def _send(self, status: int, data: Any, header: str = "") -> None:
        body = json.dumps(data).encode()
        self._transport.write(f"HTTP/1.1 {status} X\r\n{header}content-length: {len(body)}\r\n\r\n".encode() + body)


def _marks(body: bytes) -> str:
    data = json.loads(json.loads(body)["messages"][1]["content"][0]["text"])
    return json.dumps({name: {"Alignment": 1, "Contribution": 0} for name in data["steps"]})


def _completion(content: str) -> dict[str, Any]:
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return {"choices": [choice], "usage": {"prompt_tokens": 700, "completion_tokens": 40}}


class LoadServer:
    """The server as a subprocess; a context manager."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.judge_load_server", json.dumps(asdict(self._faults))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def seen(self) -> Seen:
        """What it has counted so far."""
        return Seen(**httpx.get(f"{self.url}/seen", trust_env=False).json())


async def _serve(faults: Faults) -> None:
    seen, rng = Seen(), random.Random(faults.seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(faults, seen, rng), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent closes it, or is gone


if __name__ == "__main__":
    asyncio.run(_serve(Faults(**json.loads(sys.argv[1]))))
