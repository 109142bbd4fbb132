"""Two judges, or two rubrics, on the same labelled steps: pairwise, on what both ruled. Pure.

Letter: N completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrpo.calibration.kappa import kappa_interval, table_of
from mrpo.calibration.labels import LabelledCompletion, Mark
from mrpo.calibration.resampling import Sums, cluster_interval, table_accuracy, table_kappa
from mrpo.eval.intervals import Interval, mcnemar_p
from mrpo.types import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkComparison:
    """Of one mark; "this" judge against the "other". Differences are this − other, intervals a paired bootstrap."""

    mark: str
    num_steps: int
    accuracy: float
    other_accuracy: float
    accuracy_difference: Interval
    kappa: float | None
    other_kappa: float | None
    kappa_difference: Interval | None
    num_gained: int  # steps that this judge rules as labelled, and the other does not
    num_lost: int
    p: float  # McNemar's, exact, as if steps were independent
    between: Interval | None  # kappa between the two, whatever the labels say


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of two checks."""

    name: str
    other_name: str
    num_completions: int  # ruled on by both
    marks: list[MarkComparison]
    differences: list[str]  # in what the two checks differ besides, in words


def compare_rulings(
    completions: Sequence[LabelledCompletion],
    these: Sequence[Verdicts | None],
    others: Sequence[Verdicts | None],
    mark: Mark,
    *,
    seed: int,
) -> MarkComparison | None:
    """Compare two judges on one mark; None where no step has a label and both rulings.

    Args:
        completions: [N].
        these: [N] rulings of this judge, None where it failed.
        others: [N] of the other.
        mark: to look at.
        seed: of the bootstrap.
    """
    rows: list[list[int]] = []
    labels, ours, theirs = [], [], []
    for item, this, other in zip(completions, these, others, strict=True):
        if this is None or other is None:
            continue
        row = [0] * 8  # this judge's table, then the other's
        for label, said, other_said in zip(item.reference(mark), mark.of(this), mark.of(other), strict=True):
            if label is not None:
                row[2 * label + said] += 1
                row[4 + 2 * label + other_said] += 1
                labels.append(label)
                ours.append(said)
                theirs.append(other_said)
        rows.append(row)
    if not labels:
        return None
    sums = np.array(rows, dtype=np.float64)
    accuracy = cluster_interval(sums, _accuracy_difference, seed=seed)
    assert accuracy is not None
    total = sums.sum(axis=0)
    right = [said == label for said, label in zip(ours, labels, strict=True)]
    other_right = [said == label for said, label in zip(theirs, labels, strict=True)]
    gained = sum(now and not then for now, then in zip(right, other_right, strict=True))
    lost = sum(then and not now for now, then in zip(right, other_right, strict=True))
    return MarkComparison(
        mark=mark.value,
        num_steps=len(labels),
        accuracy=float(table_accuracy(total[:4])),
        other_accuracy=float(table_accuracy(total[4:])),
        accuracy_difference=accuracy,
        kappa=_or_none(table_kappa(total[:4])),
        other_kappa=_or_none(table_kappa(total[4:])),
        kappa_difference=cluster_interval(sums, _kappa_difference, seed=seed),
        num_gained=gained,
        num_lost=lost,
        p=mcnemar_p(gained, lost),
        between=kappa_interval(table_of(theirs, ours)),
    )


def _accuracy_difference(sums: Sums) -> Sums:
    return np.asarray(table_accuracy(sums[..., :4]) - table_accuracy(sums[..., 4:]))


def _kappa_difference(sums: Sums) -> Sums:
    return np.asarray(table_kappa(sums[..., :4]) - table_kappa(sums[..., 4:]))


def _or_none(value: Sums) -> float | None:
    return None if np.isnan(value) else float(value)
