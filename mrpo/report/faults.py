"""Faults of a run in words: what was lost, when, how long it took to mend."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.faults import Fault, FaultKind
from mrpo.report.facts import duration

NUM_SHOWN = 100
WHAT = {  # (one of them, several)
    FaultKind.ENGINE_LOST: ("engine lost", "engines lost"),
    FaultKind.ENGINE_STUCK: ("engine stuck", "engines stuck"),
    FaultKind.JUDGE_ACTOR_LOST: ("judge actor lost", "judge actors lost"),
    FaultKind.JUDGE_OUTAGE: ("judge outage", "judge outages"),
    FaultKind.LEARNER_LOST: ("learner lost", "learners lost"),
    FaultKind.LEARNER_STUCK: ("learner stuck", "learners stuck"),
    FaultKind.NODE_LOST: ("node lost", "nodes lost"),
    FaultKind.SCORER_LOST: ("scorer lost", "scorers lost"),
    FaultKind.NONFINITE_STEP: ("step skipped, not finite", "steps skipped, not finite"),
    FaultKind.CHECKPOINT_FAILED: ("checkpoint not written", "checkpoints not written"),
    FaultKind.CHECKPOINT_DAMAGED: ("damaged checkpoint", "damaged checkpoints"),
    FaultKind.PREEMPTED: ("preemption", "preemptions"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One line of the table."""

    when: str
    kind: str  # as metrics name it
    what: str
    who: str
    recovery: str
    is_mended: bool
    detail: str


def fault_rows(faults: Sequence[Fault]) -> list[FaultRow]:
    """The newest faults, in the order they were noticed."""
    return [
        FaultRow(
            when=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(fault.at_s)),
            kind=fault.kind.value,
            what=WHAT[fault.kind][0],
            who=fault.who,
            recovery="not mended" if fault.recovery_s is None else duration(fault.recovery_s),
            is_mended=fault.recovery_s is not None,
            detail=fault.detail,
        )
        for fault in faults[-NUM_SHOWN:]
    ]


def faults_text(faults: Sequence[Fault]) -> str:
    """`2 learners lost, 1 node lost; longest recovery 31 s; 1 not mended`; empty without faults."""
    counts = Counter(fault.kind for fault in faults)
    parts = [", ".join(f"{counts[kind]} {WHAT[kind][counts[kind] > 1]}" for kind in FaultKind if counts[kind])]
    times_s = [fault.recovery_s for fault in faults if fault.recovery_s is not None]
    if times_s:
        parts.append(f"longest recovery {duration(max(times_s))}")
    num_open = len(faults) - len(times_s)
    if num_open:
        parts.append(f"{num_open} not mended")
    return "; ".join(parts)
