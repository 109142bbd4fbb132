"""The rewards that need no text: how many steps there are, and how many of them are valid."""

from __future__ import annotations

from collections.abc import Sequence


def step_count_reward(num_steps: int, minimum: int = 4, maximum: int = 10) -> float:
    """0 for a number of steps in [minimum, maximum], and less the further outside: −(4−K)/4 below, −(K−10)/10 above."""
    if num_steps < minimum:
        return -(minimum - num_steps) / minimum
    if num_steps > maximum:
        return -(num_steps - maximum) / maximum
    return 0.0


def process_reward(valid: Sequence[bool]) -> float:
    """Share of valid steps; 0 where there is no step.

    Args:
        valid: [K] the judge's ruling. A judgement that failed has no process reward at all, so never call this for it.
    """
    return sum(map(bool, valid)) / len(valid) if valid else 0.0
