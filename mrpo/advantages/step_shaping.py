"""MRPO: the step-aware shaping of a completion's advantage (algorithm §4), the heart of the method.

Letters: T completion tokens, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mrpo.advantages.credit import require_verdicts
from mrpo.choices import Schedule
from mrpo.errors import ConfigError

_WEIGHT_OF_SHARE: dict[str, Callable[[float, float], float]] = {
    # share (k − 1)/(K − 1) of the way from the first to the last step → weight
    Schedule.EXPONENTIAL: lambda share, base: math.pow(base, 1.0 - share),
    Schedule.LINEAR: lambda share, base: 1.0 + (base - 1.0) * (1.0 - share),
    Schedule.REVERSED: lambda share, base: math.pow(base, share),
}


def step_weights(num_steps: int, base: float, schedule: str) -> list[float]:
    """Penalty weights [K] of invalid steps, first step first; a single step weighs 1.

    Raises:
        ConfigError: a schedule without weights ("none") or an unknown one, or a base that is not positive.
    """
    if schedule not in _WEIGHT_OF_SHARE:
        raise ConfigError(f"algorithm.schedule={schedule!r} has no weights; known: {', '.join(_WEIGHT_OF_SHARE)}")
    if not (base > 0 and math.isfinite(base)):
        raise ConfigError(f"algorithm.base={base} must be a positive number")
    if num_steps <= 1:
        return [1.0] * num_steps
    weight = _WEIGHT_OF_SHARE[schedule]
    return [weight(k / (num_steps - 1), base) for k in range(num_steps)]


def shape_step_advantages(
    advantage: float,
    verdicts: Sequence[bool] | None,
    spans: Sequence[tuple[int, int]],
    num_tokens: int,
    answer_reward: float,
    *,
    threshold: float = 0.6,
    base: float = math.e,
    schedule: str = "exponential",
) -> list[float]:
    """One advantage per token: a wrong answer's valid steps gain |A|, its invalid ones lose, the earlier the more.

    Args:
        advantage: A, the completion's group advantage.
        verdicts: [K] whether each step is valid; None: not judged.
        spans: [K] half-open token ranges of the steps.
        num_tokens: T.
        answer_reward: above `threshold` the answer counts as right and every token keeps A.
        threshold: see above; equality is wrong.
        base: weight of the first step relative to the last.
        schedule: "exponential", "linear", "reversed", or "none", which keeps A everywhere.

    Returns:
        [T]; tokens in no step keep A, and zero is never negative.

    Raises:
        UserError: as many verdicts as spans are needed, and spans in order and inside the completion.
        ConfigError: an unknown schedule or a base that is not positive.
    """
    require_verdicts(verdicts, spans, num_tokens)
    kept = advantage + 0.0  # turns -0.0 into 0.0
    token_advantages = [kept] * num_tokens
    weights = [] if schedule == Schedule.NONE else step_weights(len(spans), base, schedule)
    if verdicts is None or not weights or answer_reward > threshold:
        return token_advantages
    size = abs(advantage)
    for (first, stop), is_valid, weight in zip(spans, verdicts, weights, strict=True):
        value = size if is_valid else -weight * size + 0.0
        token_advantages[first:stop] = [value] * (stop - first)
    return token_advantages
