"""How long a run took to get over each kill, and whether that was soon enough. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mrpo.faults import Fault
from tests.integration.chaos_plan import LIMITS_S, Kill, Victim


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


def judge_recoveries(kills: Sequence[Killed], faults: Sequence[Fault], *, patience: float) -> list[str]:
    """Give every kill the faults it caused, and say which took too long or were not noticed.

    Args:
        kills: in order of time.
        faults: of the run.
        patience: factor on the limits, for a machine that others use too.
    """
    found = []
    for number, killed in enumerate(kills):
        later = [other.at_s for other in kills[number + 1 :]]
        until = later[0] if later else float("inf")
        for fault in faults:
            if killed.at_s - 1.0 <= fault.at_s < until:
                ended_s = None if fault.recovery_s is None else fault.at_s + fault.recovery_s - killed.at_s
                killed.faults[f"{fault.kind} {fault.who}"] = ended_s
        where = f"{killed.kill.victim} {killed.name} killed at step {killed.step}"
        if not killed.faults and killed.actors:
            found.append(f"{where}: no fault is on record")
        limit = LIMITS_S[killed.kill.victim]
        if "RolloutWorker" in killed.actors:
            limit = LIMITS_S[Victim.ENGINE]
        for name, seconds in [("the next whole step", killed.whole_step_s), *killed.faults.items()]:
            if seconds is None or seconds > limit * patience:
                took = "never came" if seconds is None else f"took {seconds:.0f} s"
                found.append(f"{where}: {name} {took}, at most {limit * patience:g} s")
    return found
