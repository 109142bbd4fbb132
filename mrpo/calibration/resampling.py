"""Bootstrap (B. Efron, 1979) of whole completions: steps of one completion are judged in one call and err together.

Whatever is measured follows from sums over completions, so that a resample is one multinomial draw of how often each
completion occurs. Pure.

Letters: N completions, S sums of each, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mrpo.calibration.kappa import Weights, kappas
from mrpo.eval.intervals import Interval

NUM_RESAMPLES = 4_000
TAILS = (0.025, 0.975)  # of a 95 % interval
MAX_COUNTS = 4_000_000  # counts in memory at one time

Sums = NDArray[np.float64]  # [..., S]
Statistic = Callable[[Sums], NDArray[np.float64]]  # [..., S] → [...]; NaN where it is not defined


def cluster_interval(sums: Sums, statistic: Statistic, *, seed: int) -> Interval | None:
    """A statistic of the sums over all completions, and its percentile interval.

    Resamples in which the statistic is not defined are left out.

    Args:
        sums: [N, S].
        statistic: takes the sums over completions.
        seed: of the resampling.

    Returns:
        None where the statistic is not defined; `num` is N.
    """
    if len(sums) == 0:
        return None
    value = float(statistic(sums.sum(axis=0)))
    if np.isnan(value):
        return None
    drawn = statistic(resampled(sums, seed=seed))
    low, high = np.quantile(drawn[~np.isnan(drawn)], TAILS)
    # A percentile of few, coarse resamples may lie on the wrong side of what was observed by a rounding error.
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value), num=len(sums))


def resampled(sums: Sums, *, seed: int) -> Sums:
    """[R, S] sums of resamples of N completions."""
    rng = np.random.default_rng(seed)
    num = len(sums)
    chunk = max(1, MAX_COUNTS // num)
    parts = [
        rng.multinomial(num, np.full(num, 1 / num), size=min(chunk, NUM_RESAMPLES - first)) @ sums
        for first in range(0, NUM_RESAMPLES, chunk)
    ]
    return np.concatenate(parts)


def share(sums: Sums) -> NDArray[np.float64]:
    """First sum over second."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def table_kappa(sums: Sums, *, weights: Weights = Weights.NONE) -> NDArray[np.float64]:
    """Cohen's kappa of [..., C · C] counts by the first rater's category and the second's; NaN where not defined."""
    num = math.isqrt(sums.shape[-1])
    return kappas(sums.reshape(*sums.shape[:-1], num, num), weights=weights)


def table_accuracy(sums: Sums) -> NDArray[np.float64]:
    """Share of agreement in [..., 4] counts: label 0 and judge 0, 0 and 1, 1 and 0, 1 and 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[..., 0] + sums[..., 3]) / sums.sum(axis=-1))


def moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """[6] sums of one completion from which `correlation` follows."""
    return np.array([len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def correlation(sums: Sums) -> NDArray[np.float64]:
    """Pearson's of [..., 6] `moments`; of a mark it is called point-biserial."""
    num, x, y, xx, yy, xy = (sums[..., index] for index in range(6))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (num * xx - x * x) * (num * yy - y * y)
        return np.asarray(np.where(spread > 1e-9, (num * xy - x * y) / np.sqrt(np.maximum(spread, 1e-9)), np.nan))
