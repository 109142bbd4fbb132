"""How long a run took to get over each kill, and whether that was soon enough. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mrpo.faults import Fault, FaultKind
from tests.integration.chaos_plan import LIMITS_S, Kill, Victim

CLOCK_S = 1.0  # a fault may be noticed before the kill is written down


@dataclass(slots=True, kw_only=True)
class Killed:
    """What was killed."""

    kill: Kill
    name: str
    at_s: float  # time.time()
    step: int  # the highest on record then
    actors: list[str]  # classes of those that went with it
    bearers: list[str]  # first names of these, and the node's where it was one
    whole_step_s: float | None = None  # until a step made wholly afterwards was on record
    faults: dict[str, float | None] = field(default_factory=dict)  # of the run's record: seconds from kill to whole


def note_progress(kills: Sequence[Killed], step: int) -> None:
    """The step in hand when something was killed may be nearly done; the one after it is made without the victim."""
    for killed in kills:
        if killed.whole_step_s is None and step >= killed.step + 2:
            killed.whole_step_s = time.time() - killed.at_s


def judge_recoveries(kills: Sequence[Killed], faults: Sequence[Fault], *, ended_s: float, patience: float) -> list[str]:
    """Give every kill the faults it caused, and say which took too long, were not noticed or never ended.

    What was killed while it was being started again need not have a fault of its own: the earlier one goes on.

    Args:
        kills: in order of time.
        faults: of the run.
        ended_s: `time.time()` when the run ended; what was lost shortly before need not have come back.
        patience: factor on the limits, for a machine that others use too.
    """
    found = []
    unclaimed = list(faults)
    for number, killed in enumerate(kills):
        limit = patience * LIMITS_S[Victim.ENGINE if "RolloutWorker" in killed.actors else killed.kill.victim]
        for bearer in killed.bearers:
            again = [other.at_s for other in kills[number + 1 :] if bearer in other.bearers]
            for fault in faults:
                if bearer_of(fault) == bearer and _is_of(fault, killed, again[0] if again else ended_s):
                    seconds = None if fault.recovery_s is None else fault.at_s + fault.recovery_s - killed.at_s
                    killed.faults[f"{fault.kind} {fault.who}"] = seconds
                    unclaimed = [other for other in unclaimed if other is not fault]
        where = f"{killed.kill.victim} {killed.name} killed at step {killed.step}"
        if not killed.faults and killed.actors:
            found.append(f"{where}: no fault is on record")
        for name, seconds in [("the next whole step", killed.whole_step_s), *killed.faults.items()]:
            found += _too_long(f"{where}: {name}", seconds, ended_s - killed.at_s, limit)
    for fault in unclaimed:  # what a kill brought about beside what it hit
        kind = Victim.ENGINE if fault.kind in (FaultKind.ENGINE_LOST, FaultKind.ENGINE_STUCK) else Victim.LEARNER_RANK
        name = f"{fault.kind} {fault.who}"
        found += _too_long(name, fault.recovery_s, ended_s - fault.at_s, patience * LIMITS_S[kind])
    return found


def _too_long(what: str, seconds: float | None, until_end_s: float, limit_s: float) -> list[str]:
    lasted = until_end_s if seconds is None else seconds
    if lasted <= limit_s:
        return []
    took = f"not within {lasted:.0f} s" if seconds is None else f"took {lasted:.0f} s"
    return [f"{what} {took}, at most {limit_s:g} s"]


def _is_of(fault: Fault, killed: Killed, until_s: float) -> bool:
    """Whether it began with this kill, and not with the next of the same bearer, or was open when it happened."""
    if killed.at_s - CLOCK_S <= fault.at_s < until_s:
        return True
    return fault.at_s < killed.at_s and (fault.recovery_s is None or fault.at_s + fault.recovery_s > killed.at_s)


def bearer_of(fault: Fault) -> str:
    """Who has it: an actor by its first name, a node by its name."""
    return first_name(fault.who.split(" ")[0])


def first_name(name: str) -> str:
    """Of an actor that was started again: `engine-0.2` is the second life of `engine-0`."""
    return name.split(".")[0]


def open_faults(faults: Sequence[Fault]) -> set[str]:
    """First names of those that have not recovered."""
    return {bearer_of(fault) for fault in faults if fault.recovery_s is None}
