"""What is killed when, in a run of a given seed: pure, so that a seed names the same plan for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

GAP = (3, 5)  # steps between two kills
DELAY_S = 1.5  # at most, from the step on record to the kill: about a step, so that it falls into any stage
QUIET_STEPS = 2  # at the end


class Victim(StrEnum):
    """What can be killed."""

    ENGINE = "engine"  # SIGKILL of an engine's process
    ROLLOUT_ACTOR = "rollout_actor"  # Ray ends a rollout actor
    JUDGE_ACTOR = "judge_actor"  # SIGKILL
    LEARNER_RANK = "learner_rank"  # SIGKILL
    NODE = "node"  # SIGKILL of a Ray node; another one of its kind joins later


LIMITS_S = {  # from kill to whole again
    Victim.ENGINE: 120.0,
    Victim.ROLLOUT_ACTOR: 120.0,
    Victim.JUDGE_ACTOR: 60.0,
    Victim.LEARNER_RANK: 60.0,
    Victim.NODE: 60.0,  # 120 where an engine was on it
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill that is due."""

    step: int  # so many steps are on record
    delay_s: float  # and then so long
    victim: Victim
    pick: float  # in [0, 1): which of those there are


def plan_kills(
    seed: int, num_steps: int, victims: Sequence[Victim] = tuple(Victim), gap: tuple[int, int] = GAP
) -> list[Kill]:
    """A kill every few steps; each kind comes up once before any comes up again.

    Args:
        seed: of the plan.
        num_steps: of the run; the last two are left in peace.
        victims: the kinds to draw from.
        gap: fewest and most steps between two.
    """
    rng = random.Random(seed)
    kills: list[Kill] = []
    due: list[Victim] = []
    step = rng.randint(*gap)
    while step <= num_steps - QUIET_STEPS:
        if not due:
            due = rng.sample(victims, len(victims))
        kills.append(Kill(step=step, delay_s=rng.uniform(0.0, DELAY_S), victim=due.pop(), pick=rng.random()))
        step += rng.randint(*gap)
    return kills
