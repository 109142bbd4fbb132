"""Credit of single steps within a group: what every shaping gets, and how a step's value reaches its tokens.

Letters: G completions of one prompt that are in its baseline, T completion tokens, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mrpo.config import AlgorithmConfig
from mrpo.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """One completion of a group, as shaping sees it. Made by `mrpo.scoring`."""

    advantage: float  # of the whole completion
    verdicts: Sequence[bool] | None  # [K] whether each step is valid; None: not judged, or nothing to judge
    spans: Sequence[tuple[int, int]]  # [K] half-open token ranges, ordered
    num_tokens: int  # T
    answer_reward: float  # [0, 1]

    def __post_init__(self) -> None:
        require_verdicts(self.verdicts, self.spans, self.num_tokens)


# (completions of a group [G], settings, weight of the process reward) → advantages of their tokens [G][T]
GroupShaping = Callable[[Sequence[Credited], AlgorithmConfig, float], list[list[float]]]


def require_verdicts(verdicts: Sequence[bool] | None, spans: Sequence[tuple[int, int]], num_tokens: int) -> None:
    """One verdict for each step, and steps inside the completion, in order.

    Raises:
        UserError: otherwise.
    """
    if verdicts is not None and len(verdicts) != len(spans):
        raise UserError(f"got {len(verdicts)} verdicts for {len(spans)} steps; a completion needs one for each step")
    last = 0
    for first, stop in spans:
        if not 0 <= first <= stop <= num_tokens:
            raise UserError(f"step span ({first}, {stop}) is not inside a completion of {num_tokens} tokens")
        if first < last:
            raise UserError(f"step span ({first}, {stop}) begins before the step before it ends, at token {last}")
        last = stop


def spread_returns(returns: Sequence[float], spans: Sequence[tuple[int, int]], num_tokens: int) -> list[float]:
    """The return that each token has: that of its own step or, between steps, of the next one.

    Args:
        returns: [K] what follows from each step on.
        spans: [K] half-open token ranges, ordered.
        num_tokens: T.

    Returns:
        [T]; 0 after the last step: no step follows.
    """
    values: list[float] = []
    for value, (_, stop) in zip(returns, spans, strict=True):
        values += [value] * (stop - len(values))
    return values + [0.0] * (num_tokens - len(values))
