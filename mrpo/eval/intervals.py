"""95 % intervals and the paired test of two evaluations of the same questions. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
NO_WIDTH = 1e-12  # what rounding leaves of no width


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float
    num: int  # observations behind it

    @property
    def has_width(self) -> bool:
        """Whether it bounds anything: a bootstrap of one value, or of equal ones, does not."""
        return self.high - self.low > NO_WIDTH


def wilson_interval(successes: int, num: int) -> Interval | None:
    """Wilson's score interval of a share (E. B. Wilson, 1927); None where there is no observation."""
    assert 0 <= successes <= num
    if num == 0:
        return None
    share = successes / num
    denominator = 1 + Z95**2 / num
    centre = (share + Z95**2 / (2 * num)) / denominator
    half = Z95 * math.sqrt(share * (1 - share) / num + Z95**2 / (4 * num**2)) / denominator
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding leaves 1e-17
    high = 1.0 if successes == num else centre + half
    return Interval(value=share, low=low, high=high, num=num)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Mean and its normal interval by the unbiased deviation; None for no value, no width for one."""
    num = len(values)
    if num == 0:
        return None
    mean = math.fsum(values) / num
    variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1) if num > 1 else 0.0
    half = Z95 * math.sqrt(variance / num)
    return Interval(value=mean, low=mean - half, high=mean + half, num=num)


def mcnemar_p(num_gained: int, num_lost: int) -> float:
    """Exact two-sided McNemar p: how likely so uneven a split of the changed questions is by chance.

    Args:
        num_gained: questions wrong before and right after.
        num_lost: questions right before and wrong after.
    """
    num = num_gained + num_lost
    tail = sum(math.comb(num, k) for k in range(min(num_gained, num_lost) + 1))
    return min(1.0, 2 * tail / (1 << num))
