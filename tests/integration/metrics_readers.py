"""What shows a run's numbers, read back: Ray's metrics endpoint while the run is there, and wandb's file after it."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PERIOD_S = 0.3
BLOCK = 32_768  # bytes, of a wandb file; its records are LevelDB's
HEADER = 7  # bytes: of the file, and of each record
OURS = ("state", "stage", "engine", "position", "reason", "kind", "le", "experiment", "run")  # labels; others are Ray's
SAMPLE = re.compile(r"(ray_mrpo_\w+)\{(.*)\} (\S+)")


def free_port() -> int:
    """A port that nobody listens on at present."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Endpoint:
    """Asks for the metrics of a Ray that comes and goes; use as a context manager."""

    port: int
    texts: list[str] = field(default_factory=list)

    def __enter__(self) -> Endpoint:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], list[float]]:
        """The values of every series of ours, in the order in which they were seen."""
        found: dict[tuple[str, frozenset[tuple[str, str]]], list[float]] = {}
        for text in self.texts:
            for name, labels, value in samples(text):
                found.setdefault((name, labels), []).append(value)
        return found

    def _ask(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._done.wait(PERIOD_S):
            try:
                with opener.open(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as reply:
                    self.texts.append(reply.read().decode())
            except OSError:
                continue  # it is not up yet, or no longer


def samples(text: str) -> Iterator[tuple[str, frozenset[tuple[str, str]], float]]:
    """Name, our own labels and value of every metric of ours."""
    for line in text.splitlines():
        match = SAMPLE.fullmatch(line)
        if match:
            labels = re.findall(r'(\w+)="([^"]*)"', match[2])
            yield match[1], frozenset((name, value) for name, value in labels if name in OURS), float(match[3])


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """The logged rows of an offline wandb file."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for content in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Whole records: checksum, length, and whether one is whole, begins, goes on or ends; none crosses a block."""
    start, parts = HEADER, b""
    while start + HEADER <= len(content):
        if BLOCK - start % BLOCK < HEADER:
            start += BLOCK - start % BLOCK  # the rest of a block that no record fits into
            continue
        _, length, kind = struct.unpack("<IHB", content[start : start + HEADER])
        parts += content[start + HEADER : start + HEADER + length]
        start += HEADER + length
        if kind in (1, 4):
            yield parts
            parts = b""
