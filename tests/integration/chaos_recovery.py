"""How long a run took to get over each kill, and whether that was soon enough. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mrpo.faults import Fault
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
    whole_step_s: float | None = None  # until a step made wholly afterwards was on record
    faults: dict[str, float | None] = field(default_factory=dict)  # of the run's record: seconds from kill to whole


def note_progress(kills: Sequence[Killed], step: int) -> None:
    """The step in hand when something was killed may be nearly done; the one after it is made without the victim."""
    for killed in kills:
        if killed.whole_step_s is None and step >= killed.step + 2:
            killed.whole_step_s = time.time() - killed.at_s


def judge_recoveries(kills: Sequence[Killed], faults: Sequence[Fault], *, ended_s: float, patience: float) -> list[str]:
    """Give every kill the faults it caused, and say which took too long, were not noticed or never ended.

    What was killed while it was being started again has no fault of its own: the one that it was started for goes on.

    Args:
        kills: in order of time.
        faults: of the run.
        ended_s: `time.time()` when the run ended; what was lost shortly before need not have come back.
        patience: factor on the limits, for a machine that others use too.
    """
    found = []
    for number, killed in enumerate(kills):
        until = kills[number + 1].at_s if number + 1 < len(kills) else ended_s
        mine = [fault for fault in faults if _is_of(fault, killed, until)]
        limit = patience * LIMITS_S[Victim.ENGINE if "RolloutWorker" in killed.actors else killed.kill.victim]
        for fault in mine:
            seconds = None if fault.recovery_s is None else fault.at_s + fault.recovery_s - killed.at_s
            killed.faults[f"{fault.kind} {fault.who}"] = seconds
        where = f"{killed.kill.victim} {killed.name} killed at step {killed.step}"
        if not mine and killed.actors:
            found.append(f"{where}: no fault is on record")
        for name, seconds in [("the next whole step", killed.whole_step_s), *killed.faults.items()]:
            lasted = ended_s - killed.at_s if seconds is None else seconds
            if lasted > limit:
                took = f"not within {lasted:.0f} s" if seconds is None else f"took {lasted:.0f} s"
                found.append(f"{where}: {name} {took}, at most {limit:g} s")
    return found


def _is_of(fault: Fault, killed: Killed, until: float) -> bool:
    if killed.at_s - CLOCK_S <= fault.at_s < until:
        return True
    is_open = fault.at_s < killed.at_s and (fault.recovery_s is None or fault.at_s + fault.recovery_s > killed.at_s)
    return is_open and first_name(killed.name) == first_name(fault.who)


def first_name(name: str) -> str:
    """Of an actor that was started again: `engine-0.2` is the second life of `engine-0`."""
    return name.split(".")[0]


def open_faults(faults: Sequence[Fault]) -> set[str]:
    """First names of those that have not recovered."""
    return {first_name(fault.who) for fault in faults if fault.recovery_s is None}
