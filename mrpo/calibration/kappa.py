"""Cohen's kappa: agreement of two raters beyond what their habits alone would give. Pure.

Letters: C categories; a table [C, C] counts items by the first rater's category (rows) and the second's (columns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrpo.eval.intervals import Z95, Interval

# J. R. Landis, G. G. Koch, 1977: the lower end of each band.
BANDS = ((0.0, "slight"), (0.2, "fair"), (0.4, "moderate"), (0.6, "substantial"), (0.8, "almost perfect"))
POOR = "poor"


class Weights(StrEnum):
    """How far apart two categories are."""

    NONE = "none"  # any two are equally unlike
    LINEAR = "linear"  # by the number of categories between them
    QUADRATIC = "quadratic"  # by its square


def table_of(first: Sequence[int], second: Sequence[int], *, num_categories: int = 2) -> NDArray[np.int64]:
    """[C, C] counts; categories are 0 … C − 1."""
    assert len(first) == len(second)
    table = np.zeros((num_categories, num_categories), dtype=np.int64)
    np.add.at(table, (np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)), 1)
    return table


def cohen_kappa(table: ArrayLike, *, weights: Weights = Weights.NONE) -> float | None:
    """Cohen's kappa (J. Cohen, 1960; weighted: 1968), as scikit-learn's `cohen_kappa_score` defines it.

    Args:
        table: [C, C] counts.
        weights: of disagreements.

    Returns:
        At most 1; None where it is not defined: no items, or both raters always say the same one thing.
    """
    value = float(kappas(np.asarray(table, dtype=np.float64), weights=weights))
    return None if math.isnan(value) else value


def kappas(tables: NDArray[np.float64], *, weights: Weights = Weights.NONE) -> NDArray[np.float64]:
    """[...] `cohen_kappa` of many tables [..., C, C]; NaN where it is not defined."""
    apart = distances(tables.shape[-1], weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tables / tables.sum(axis=(-2, -1), keepdims=True)
        by_chance = shares.sum(axis=-1)[..., :, None] * shares.sum(axis=-2)[..., None, :]
        seen, expected = (shares * apart).sum(axis=(-2, -1)), (by_chance * apart).sum(axis=(-2, -1))
        return np.asarray(np.where(expected > 1e-12, 1 - seen / expected, np.nan))


def kappa_error(table: ArrayLike, *, weights: Weights = Weights.NONE) -> float | None:
    """Large-sample standard error of kappa (J. L. Fleiss, J. Cohen, B. S. Everitt, 1969), items taken as independent.

    Returns:
        None where kappa is not defined.
    """
    counts = np.asarray(table, dtype=np.float64)
    if cohen_kappa(counts, weights=weights) is None:
        return None
    total = counts.sum()
    shares = counts / total
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    agreement = 1.0 - distances(len(shares), weights)
    observed = float((agreement * shares).sum())
    expected = float((agreement * np.outer(rows, columns)).sum())
    mean = (agreement @ columns)[:, None] + (agreement.T @ rows)[None, :]  # [C, C] of a row's and a column's agreement
    spread = float((shares * (agreement * (1 - expected) - mean * (1 - observed)) ** 2).sum())
    offset = (observed * expected - 2 * expected + observed) ** 2
    return math.sqrt(max(0.0, spread - offset) / total) / (1 - expected) ** 2


def kappa_interval(table: ArrayLike, *, weights: Weights = Weights.NONE) -> Interval | None:
    """Kappa and its normal 95 % interval by `kappa_error`, cut at −1 and 1; None where it is not defined."""
    value, error = cohen_kappa(table, weights=weights), kappa_error(table, weights=weights)
    if value is None or error is None:
        return None
    low, high = max(-1.0, value - Z95 * error), min(1.0, value + Z95 * error)
    return Interval(value=value, low=low, high=high, num=int(np.asarray(table).sum()))


def band_of(kappa: float) -> str:
    """Landis and Koch's word for an agreement; a band includes its lower end."""
    return next((name for low, name in reversed(BANDS) if kappa >= low), POOR)


def table_under_flips(share: float, probability: float) -> NDArray[np.float64]:
    """[2, 2] expected shares of a judge that knows the labels and turns each over with the same probability.

    Args:
        share: of labels that are 1.
        probability: of a flip.
    """
    return np.array(
        [
            [(1 - share) * (1 - probability), (1 - share) * probability],
            [share * probability, share * (1 - probability)],
        ]
    )


def distances(num_categories: int, weights: Weights) -> NDArray[np.float64]:
    """[C, C] how far apart categories are, in [0, 1] and 0 on the diagonal."""
    places = np.arange(num_categories, dtype=np.float64)
    apart = np.abs(places[:, None] - places[None, :])
    if weights == Weights.NONE:
        return (apart > 0).astype(np.float64)
    return (apart / (num_categories - 1)) ** (1 if weights == Weights.LINEAR else 2)
