"""How far two raters of the same steps agree: a judge and the labels, or two annotators. Pure.

A failed call is no verdict: its completion is left out, and counted elsewhere. Letters: N completions, K steps of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from mrpo.calibration.kappa import Weights, band_of, kappa_interval, table_of
from mrpo.calibration.labels import LabelledCompletion, Mark, annotators_of
from mrpo.calibration.resampling import Sums, cluster_interval, table_accuracy, table_kappa
from mrpo.eval.intervals import Interval
from mrpo.types import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A step with what the reference and the other rater say of it."""

    completion: int  # its number
    index: int  # of the step, from 0
    num_steps: int  # of its completion
    length: int  # characters
    label: bool
    ruling: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of one mark. Intervals are 95 %; None where a measure is not defined."""

    mark: str
    num_steps: int
    num_completions: int
    table: list[list[int]]  # [label][ruling] counts
    accuracy: Interval | None  # bootstrap of completions
    kappa: Interval | None  # bootstrap of completions
    kappa_analytic: Interval | None  # normal, by the large-sample error, as if steps were independent
    band: str | None  # Landis and Koch
    too_kind: float | None  # share of the steps labelled 0 that are ruled 1
    too_strict: float | None  # share of the steps labelled 1 that are ruled 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceAgreement:
    """Of the steps at one place of the chain."""

    mark: str
    place: str
    num_steps: int
    table: list[list[int]]
    accuracy: float | None
    kappa: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaterAgreement:
    """Of two raters by name."""

    first: str
    second: str
    agreement: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedAgreement:
    """Of both marks together, as a grade: 0, 1 or 2 of them."""

    weights: str  # of disagreements, see `mrpo.calibration.kappa.Weights`
    table: list[list[int]]  # [3][3] counts by label and ruling
    kappa: Interval | None  # bootstrap of completions


def pairs_of(completions: Sequence[LabelledCompletion], rulings: Sequence[Verdicts | None], mark: Mark) -> list[Pair]:
    """Every step that has both a ruling and a label; labels on which annotators are split are none."""
    return [
        Pair(completion=number, index=k, num_steps=len(item.steps), length=len(item.steps[k]), label=label, ruling=said)
        for number, (item, verdicts) in enumerate(zip(completions, rulings, strict=True))
        if verdicts is not None
        for k, (label, said) in enumerate(zip(item.reference(mark), mark.of(verdicts), strict=True))
        if label is not None
    ]


def agreement(pairs: Sequence[Pair], mark: Mark, *, seed: int) -> Agreement:
    """Measure one mark."""
    table = table_of([pair.label for pair in pairs], [pair.ruling for pair in pairs])
    sums = tables_of_completions(pairs)
    kappa = cluster_interval(sums, table_kappa, seed=seed)
    negative, positive = int(table[0].sum()), int(table[1].sum())
    return Agreement(
        mark=mark.value,
        num_steps=len(pairs),
        num_completions=len(sums),
        table=table.tolist(),
        accuracy=cluster_interval(sums, table_accuracy, seed=seed),
        kappa=kappa,
        kappa_analytic=kappa_interval(table),
        band=band_of(round(kappa.value, 12)) if kappa else None,  # 0.7 − 0.5 is less than 0.2 in binary
        too_kind=int(table[0, 1]) / negative if negative else None,
        too_strict=int(table[1, 0]) / positive if positive else None,
    )


def graded_agreement(
    completions: Sequence[LabelledCompletion], rulings: Sequence[Verdicts | None], *, seed: int
) -> list[GradedAgreement]:
    """Weighted kappa: that one mark is given for both is less of an error than that none is."""
    rows = []
    for item, said in zip(completions, rulings, strict=True):
        if said is None:
            continue
        labels = zip(item.reference(Mark.ALIGNMENT), item.reference(Mark.CONTRIBUTION), strict=True)
        marks = zip(said.alignment, said.contribution, strict=True)
        grades = [
            (a + c, x + y) for (a, c), (x, y) in zip(labels, marks, strict=True) if a is not None and c is not None
        ]
        rows.append(table_of([label for label, _ in grades], [mark for _, mark in grades], num_categories=3).ravel())
    sums = np.array(rows, dtype=np.float64).reshape(-1, 9)
    total = sums.sum(axis=0).reshape(3, 3).astype(int).tolist()
    return [
        GradedAgreement(
            weights=weights.value,
            table=total,
            kappa=cluster_interval(sums, partial(table_kappa, weights=weights), seed=seed),
        )
        for weights in (Weights.LINEAR, Weights.QUADRATIC)
    ]


def tables_of_completions(pairs: Sequence[Pair]) -> Sums:
    """[N, 4] counts by label and ruling, of the completions that have a pair."""
    numbers = sorted({pair.completion for pair in pairs})
    rows = {number: row for row, number in enumerate(numbers)}
    counts = np.zeros((len(numbers), 4))
    for pair in pairs:
        counts[rows[pair.completion], 2 * pair.label + pair.ruling] += 1
    return counts


def by_third(pairs: Sequence[Pair], mark: Mark) -> list[PlaceAgreement]:
    """Early, mid and late steps, told apart as failures are (`mrpo.eval.cascade`)."""
    return [_at(name, [pair for pair in pairs if third_of(pair) == name], mark) for name in ("early", "mid", "late")]


def by_index(pairs: Sequence[Pair], mark: Mark) -> list[PlaceAgreement]:
    """Step 1, step 2, ….."""
    last = max((pair.index for pair in pairs), default=-1)
    return [_at(str(k + 1), [pair for pair in pairs if pair.index == k], mark) for k in range(last + 1)]


def third_of(pair: Pair) -> str:
    """Which third of the chain a step stands in; the only step of one is early."""
    point = pair.index / (pair.num_steps - 1) if pair.num_steps > 1 else 0.0
    return "early" if point < 1 / 3 else "mid" if point < 2 / 3 else "late"


def annotator_pairs(completions: Sequence[LabelledCompletion], *, seed: int) -> list[RaterAgreement]:
    """Every two annotators on the completions that both labelled: no judge can be expected to do better."""
    names = annotators_of(completions)
    return [
        RaterAgreement(first=first, second=second, agreement=agreement(pairs, mark, seed=seed))
        for first, second in combinations(names, 2)
        for mark in Mark
        if (pairs := list(_between(completions, first, second, mark)))
    ]


def _between(completions: Sequence[LabelledCompletion], first: str, second: str, mark: Mark) -> Iterator[Pair]:
    shared = [item for item in completions if first in item.labels and second in item.labels]
    for number, item in enumerate(shared):
        marks = zip(mark.of(item.labels[first]), mark.of(item.labels[second]), strict=True)
        for k, (label, other) in enumerate(marks):
            length = len(item.steps[k])
            yield Pair(completion=number, index=k, num_steps=len(item.steps), length=length, label=label, ruling=other)


def judge_and_annotators(
    completions: Sequence[LabelledCompletion], rulings: Sequence[Verdicts | None], *, seed: int
) -> list[RaterAgreement]:
    """The judge against each annotator alone, to be read beside `annotator_pairs`."""
    names = annotators_of(completions)
    found = []
    for name in names:
        rated = [(item, said) for item, said in zip(completions, rulings, strict=True) if name in item.labels]
        for mark in Mark:
            pairs = [
                Pair(completion=n, index=k, num_steps=len(item.steps), length=len(item.steps[k]), label=a, ruling=b)
                for n, (item, said) in enumerate(rated)
                if said is not None
                for k, (a, b) in enumerate(zip(mark.of(item.labels[name]), mark.of(said), strict=True))
            ]
            if pairs:
                found.append(RaterAgreement(first=name, second="judge", agreement=agreement(pairs, mark, seed=seed)))
    return found


def _at(place: str, pairs: Sequence[Pair], mark: Mark) -> PlaceAgreement:
    table = table_of([pair.label for pair in pairs], [pair.ruling for pair in pairs])
    counts = table.reshape(4).astype(np.float64)
    accuracy, kappa = float(table_accuracy(counts)), float(table_kappa(counts))
    return PlaceAgreement(
        mark=mark.value,
        place=place,
        num_steps=len(pairs),
        table=table.tolist(),
        accuracy=None if np.isnan(accuracy) else accuracy,
        kappa=None if np.isnan(kappa) else kappa,
    )
