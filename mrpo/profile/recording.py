"""What a profiled run records: wall times of its stages, and a trace of each recorded call of learner and engines."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mrpo.atomic import write_text

TRACES = "traces"
ROLLOUT = "rollout"  # the stage with which a step begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stage of one step."""

    stage: str
    started_s: float  # time.time()
    seconds: float


@dataclass(kw_only=True)
class Recording:
    """Written by the wrappers around learner and engines, read by the summary."""

    folder: Path  # of the profile, existing
    is_on: bool = False  # whether the step in hand is one to record
    calls: list[Span] = field(default_factory=list)  # of learner and engines, without what recording itself takes
    spans: list[Span] = field(default_factory=list)  # of the controller, with it
    _numbers: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """Around a stage of the controller."""
        started_s, started = time.time(), time.perf_counter()
        try:
            yield
        finally:
            if self.is_on:
                self.spans.append(Span(stage=stage, started_s=started_s, seconds=time.perf_counter() - started))

    def called(self, stage: str, started_s: float, seconds: float) -> None:
        """A recorded call ended."""
        self.calls.append(Span(stage=stage, started_s=started_s, seconds=seconds))

    async def keep(self, who: str, stage: str, traces: Awaitable[Sequence[bytes]]) -> None:
        """Write what each process recorded: `traces/<who>-<number>.<stage>.<n>.json.gz`."""
        found = await traces
        self._numbers[f"{who}.{stage}"] += 1
        number = self._numbers[f"{who}.{stage}"]
        (self.folder / TRACES).mkdir(exist_ok=True)
        for index, trace in enumerate(found):
            (self.folder / TRACES / f"{who}-{index}.{stage}.{number}.json.gz").write_bytes(trace)

    def write_spans(self) -> None:
        """The controller's stages as a Chrome trace of their own."""
        events = [
            {
                "name": span.stage,
                "cat": "stage",
                "ph": "X",
                "pid": "controller",
                "tid": "stages",
                "ts": span.started_s * 1e6,
                "dur": span.seconds * 1e6,
            }
            for span in self.spans
        ]
        write_text(self.folder / "stages.json", json.dumps({"traceEvents": events}))

    def traces_by_process(self) -> Mapping[tuple[str, str], list[Path]]:
        """Traces of each process and stage, in order."""
        found: dict[tuple[str, str], list[Path]] = {}
        for path in sorted((self.folder / TRACES).glob("*.json.gz")):
            who, stage, *_ = path.name.split(".")
            found.setdefault((who, stage), []).append(path)
        return found
