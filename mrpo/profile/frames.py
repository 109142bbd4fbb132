"""From Chrome traces to frames: who called what for how long, merged over calls, steps and threads. Pure."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PYTHON = "python_function"
ON_CPU = ("cpu_op", PYTHON, "user_annotation")
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_PYTHON = re.compile(r"^(?P<file>[^()]+)\((?P<line>\d+)\): (?P<name>.+)$")  # as PyTorch names a Python function
_ADDRESS = re.compile(r" (object )?at 0x[0-9a-f]+")


@dataclass(slots=True)
class Frame:
    """One function or operator beneath one caller. Times in microseconds."""

    name: str
    total_us: float = 0.0
    calls: int = 0
    children: dict[str, Frame] = field(default_factory=dict)

    @property
    def self_us(self) -> float:
        """Not spent in what it called."""
        return max(0.0, self.total_us - sum(child.total_us for child in self.children.values()))

    def child(self, name: str) -> Frame:
        """The callee of this name, new where there was none."""
        if name not in self.children:
            self.children[name] = Frame(name)
        return self.children[name]

    def walk(self, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Frame]]:
        """This frame and all beneath, each with the names from the root down to it."""
        path = (*above, self.name)
        yield path, self
        for child in self.children.values():
            yield from child.walk(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A function or operator wherever it was called from."""

    name: str
    self_us: float
    calls: int


def read_events(trace: Path) -> list[Mapping[str, Any]]:
    """The events of a Chrome trace, compressed or not."""
    data = trace.read_bytes()
    events: list[Mapping[str, Any]] = json.loads(gzip.decompress(data) if trace.suffix == ".gz" else data)[
        "traceEvents"
    ]
    return events


def add_events(root: Frame, events: Iterable[Mapping[str, Any]], *, kinds: tuple[str, ...] = ON_CPU) -> None:
    """Merge a trace into a tree; each thread's calls hang below the root, and its time is theirs.

    Threads that run no operator are left out.

    Args:
        root: gets the frames.
        events: of one Chrome trace.
        kinds: categories of events that count.
    """
    threads: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in kinds and event.get("dur", 0.0) > 0.0:
            threads[event["pid"], event["tid"]].append(event)
    for calls in threads.values():
        if all(call["cat"] == PYTHON for call in calls):
            continue  # it waits, or hands over; the time is another thread's
        calls.sort(key=lambda call: (call["ts"], -call["dur"]))
        open_calls: list[tuple[float, Frame]] = []  # when each ends
        for call in calls:
            starts, ends = call["ts"], call["ts"] + call["dur"]
            while open_calls and open_calls[-1][0] <= starts:
                open_calls.pop()
            above = open_calls[-1][1] if open_calls else root
            if open_calls:
                ends = min(ends, open_calls[-1][0])  # rounding lets a callee end after its caller
            frame = above.child(readable(call["name"]))
            frame.total_us += ends - starts
            frame.calls += 1
            if above is root:
                root.total_us += ends - starts
            open_calls.append((ends, frame))


def readable(name: str) -> str:
    """A frame's name without folders, lines and addresses: `step.py: train_step`."""
    python = _PYTHON.match(name)
    if python is not None:
        name = f"{Path(python['file']).name}: {python['name']}"
    return _ADDRESS.sub("", name).replace(";", ",")


def top_lines(root: Frame, number: int) -> list[Line]:
    """Where the time went, by own time, the largest first; recursion counts once a call."""
    own: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for _, frame in root.walk():
        if frame is not root:
            own[frame.name] += frame.self_us
            calls[frame.name] += frame.calls
    names = sorted(own, key=lambda name: -own[name])[:number]
    return [Line(name=name, self_us=own[name], calls=calls[name]) for name in names]
