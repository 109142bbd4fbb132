"""What went wrong while a run was under way, and how long it took to mend: counted and kept in `faults.jsonl`."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from mrpo.json_lines import append, read_lines

logger = logging.getLogger(__name__)

FAULTS_FILE = "faults.jsonl"


class FaultKind(StrEnum):
    """What can go wrong without ending a run, or before it ends."""

    ENGINE_LOST = "engine_lost"  # its process or actor died, or its node
    ENGINE_STUCK = "engine_stuck"  # nothing came of it in time
    JUDGE_ACTOR_LOST = "judge_actor_lost"
    JUDGE_OUTAGE = "judge_outage"
    LEARNER_LOST = "learner_lost"  # a rank died, or its node
    LEARNER_STUCK = "learner_stuck"
    NODE_LOST = "node_lost"
    SCORER_LOST = "scorer_lost"  # the actor of BERTScore's encoder died, or did not answer in time
    NONFINITE_STEP = "nonfinite_step"  # the learner refused an update; the step was skipped
    CHECKPOINT_FAILED = "checkpoint_failed"  # a full disk, say; the run goes on
    CHECKPOINT_DAMAGED = "checkpoint_damaged"  # it was passed over for the one before
    PREEMPTED = "preempted"  # SIGTERM


@dataclass(slots=True, kw_only=True)
class Fault:
    """One fault, from when it was noticed."""

    kind: FaultKind
    who: str  # the actor, node or file, as the Ray dashboard or the run folder names it
    detail: str
    at_s: float  # time.time() when it was noticed
    recovery_s: float | None = None  # until the run was whole again; None: it is not yet


class FaultListener(Protocol):
    """Who hears of faults as they happen; maybe on another thread than the run's."""

    def fault_begun(self, fault: Fault) -> None:
        """It was noticed."""
        ...

    def fault_ended(self, fault: Fault) -> None:
        """It was mended, `recovery_s` after it was noticed."""
        ...


class FaultLog:
    """The faults of one run. One process writes; every fault is a line when noticed, and one more when mended.

    A disk that is full for a while costs the lines of that while: a log of faults ends no run and stops no resume.

    `faults.jsonl` is the sum: listeners hear what this process noticed, and the metrics of a step have what was new in
    it, so that a fault after the last step, or in a step that is done again, is in no line of `metrics.jsonl`.
    """

    def __init__(self, path: Path | None) -> None:
        """Go on with a run's record; None keeps none.

        Args:
            path: of `faults.jsonl`; what earlier parts of the run wrote stays.
        """
        self._path = path
        self._begun: list[Fault] = []  # by this process
        self._ended: list[Fault] = []
        self._num_taken = (0, 0)  # of these, by the metrics of steps
        self._listeners: list[FaultListener] = []

    def begin(self, kind: FaultKind, who: str, detail: str = "") -> Fault:
        """Note a fault; `end` it when the run is whole again."""
        fault = Fault(kind=kind, who=who, detail=detail, at_s=time.time())
        logger.warning("fault: %s: %s%s", kind.value, who, f": {detail}" if detail else "")
        self._write(fault)
        self._count(fault)
        return fault

    def end(self, fault: Fault) -> None:
        """The run is whole again; said once, a second time changes nothing."""
        if fault.recovery_s is not None:
            return
        fault.recovery_s = time.time() - fault.at_s
        logger.warning("recovered from %s of %s after %.1f s", fault.kind.value, fault.who, fault.recovery_s)
        self._write(fault)
        self._ended.append(fault)
        for listener in self._listeners:
            listener.fault_ended(fault)

    def update(self, fault: Fault) -> None:
        """Put on record what was added to a fault's detail since: its latest line counts."""
        self._write(fault)

    def resume(self, fault: Fault) -> None:
        """A fault that ended the process before this one: it is counted now, and over."""
        self._count(fault)
        self.end(fault)

    @contextmanager
    def told_to(self, listener: FaultListener) -> Iterator[None]:
        """Tell `listener` of all that this process noticed so far, and of each fault until the block ends."""
        for fault in self._begun:
            listener.fault_begun(fault)
        for fault in self._ended:
            listener.fault_ended(fault)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def left_open(self, kind: FaultKind) -> list[Fault]:
        """The faults of a kind on record that have not ended, those of earlier processes too."""
        found = read_faults(self._path.parent) if self._path is not None else []
        return [fault for fault in found if fault.kind == kind and fault.recovery_s is None]

    @contextmanager
    def during(self, kind: FaultKind, who: str, detail: str = "") -> Iterator[Fault]:
        """A fault that is mended when the block ends without an error."""
        fault = self.begin(kind, who, detail)
        yield fault
        self.end(fault)

    def take_metrics(self) -> dict[str, float]:
        """Faults by kind, and the sum of recoveries, since this was asked last; what did not happen is left out."""
        num_begun, num_ended = self._num_taken
        begun, ended = self._begun[num_begun:], self._ended[num_ended:]
        self._num_taken = num_begun + len(begun), num_ended + len(ended)
        metrics = {f"faults/{kind}": float(count) for kind, count in Counter(fault.kind for fault in begun).items()}
        return metrics | ({"faults/recovery_s": sum(fault.recovery_s or 0.0 for fault in ended)} if ended else {})

    def _count(self, fault: Fault) -> None:
        self._begun.append(fault)
        for listener in self._listeners:
            listener.fault_begun(fault)

    def _write(self, fault: Fault) -> None:
        if self._path is None:
            return
        try:
            append(self._path, json.dumps(asdict(fault)) + "\n", sync=True)
        except OSError as error:  # the fault may be the full disk itself, which alone ends no run
            logger.error(
                "%s cannot be written (%s): this fault is on the console and in metrics alone", self._path, error
            )


def read_faults(folder: Path) -> list[Fault]:
    """The faults of a run, in the order they were noticed; a run without a record had none.

    A line that is no fault is passed over with a warning.
    """
    path = folder / FAULTS_FILE
    faults: dict[tuple[str, str, float], Fault] = {}
    for number, line in enumerate(read_lines(path).whole, start=1):
        try:
            row = json.loads(line)
            fault = Fault(**{**row, "kind": FaultKind(row["kind"])})
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s line %d is passed over: %s; expected one fault as JSON", path, number, error)
            continue
        faults[fault.kind, fault.who, fault.at_s] = fault
    return list(faults.values())
