"""Intervals and paired tests against scipy on the same data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mrpo.errors import DataError
from mrpo.eval.intervals import mcnemar_p, wilson_interval
from mrpo.eval.pairing import all_pairs, compare_models
from mrpo.eval.statistics import bootstrap_macro, bootstrap_mean, bootstrap_p
from tests.unit.evaluation_world import make_evaluation, make_row, unrated

RNG = np.random.default_rng(5)
ANSWERS = RNG.random(180) < 0.41
SHARES = RNG.integers(0, 6, 150) / 5


@pytest.mark.parametrize(("successes", "num"), [(0, 5), (5, 5), (1, 3), (82, 200), (12, 706), (900, 2000)])
def test_wilson_is_scipys(successes: int, num: int) -> None:
    ours = wilson_interval(successes, num)
    theirs = stats.binomtest(successes, num).proportion_ci(confidence_level=0.95, method="wilson")
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(7, 1), (1, 7), (30, 12), (5, 5), (0, 9)])
def test_mcnemar_is_scipys_binomial_test(gained: int, lost: int) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(stats.binomtest(gained, gained + lost, 0.5).pvalue, abs=1e-12)


@pytest.mark.parametrize("values", [ANSWERS.astype(float), SHARES, RNG.normal(size=60)], ids=["0/1", "shares", "reals"])
def test_the_bootstrap_of_a_mean_is_scipys(values: np.ndarray) -> None:
    ours = bootstrap_mean(values.tolist(), seed=0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    noise = 0.06 * values.std() / np.sqrt(len(values)) + 0.5 / len(values) * 0.2  # of the ends, over resamplings
    assert ours is not None
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=noise)
    assert ours.num == len(values)


def test_the_macro_interval_is_scipys() -> None:
    sets = [ANSWERS.astype(float), SHARES, np.array([0.0, 1.0, 1.0, 0.0, 1.0])]
    ours = bootstrap_macro([values.tolist() for values in sets], seed=0)

    def macro(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([part.mean(axis=axis) for part in parts], axis=0)

    theirs = stats.bootstrap(tuple(sets), macro, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours is not None
    assert ours.value == pytest.approx(np.mean([part.mean() for part in sets]))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = SHARES.tolist()
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean([], seed=0) is None
    assert bootstrap_macro([], seed=0) is None


def test_values_without_spread_have_an_interval_without_width() -> None:
    interval = bootstrap_mean([0.25] * 9, seed=0)
    assert interval is not None
    assert (interval.low, interval.value, interval.high) == (0.25, 0.25, 0.25)


def test_the_bootstrap_p_approaches_the_normal_one() -> None:
    differences = np.array([1.0] * 60 + [-1.0] * 40 + [0.0] * 300)
    z = differences.mean() / (differences.std() / np.sqrt(len(differences)))
    assert bootstrap_p(differences.tolist(), seed=0) == pytest.approx(2 * stats.norm.sf(z), abs=0.012)
    assert bootstrap_p([0.0] * 5, seed=0) == 1.0
    assert bootstrap_p([1.0] * 50, seed=0) == pytest.approx(2 / 10_001)


def test_models_are_paired_by_question() -> None:
    # right/right, right/wrong, wrong/right twice, wrong/wrong; questions 7 and 9 are of one model only
    first = [make_row(n, correct=c) for n, c in enumerate((True, True, False, False, False))] + [
        make_row(7, correct=True)
    ]
    second = [make_row(n, correct=c) for n, c in ((4, False), (3, True), (2, True), (1, False), (0, True))]
    second[0] = unrated(second[0])
    a, b = make_evaluation(first, "a"), make_evaluation([*second, make_row(9, correct=True)], "b")
    [pair] = all_pairs([a, b])
    assert (pair.first, pair.second, pair.num_paired) == ("a", "b", 5)
    assert (pair.num_both, pair.num_only_first, pair.num_only_second, pair.num_judge_errors) == (1, 1, 2, 1)
    assert pair.difference.value == pytest.approx(1 / 5)
    assert pair.mcnemar_p == pytest.approx(stats.binomtest(1, 3).pvalue)
    assert compare_models(a, b, dataset="slake") is None


def test_the_paired_interval_is_scipys() -> None:
    right = RNG.random((2, 200)) < np.array([[0.4], [0.5]])
    models = [
        make_evaluation([make_row(n, correct=bool(c)) for n, c in enumerate(row)], str(i))
        for i, row in enumerate(right)
    ]
    pair = compare_models(*models)
    one, other = right.astype(float)

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray((y - x).mean(axis=axis))

    theirs = stats.bootstrap((one, other), difference, paired=True, n_resamples=20_000, method="percentile", rng=1)
    assert pair is not None
    ends = theirs.confidence_interval
    assert (pair.difference.low, pair.difference.high) == pytest.approx((ends.low, ends.high), abs=0.006)


def test_questions_that_changed_are_not_paired() -> None:
    first, second = make_row(0, correct=True), make_row(0, correct=True, gold_answer="another")
    with pytest.raises(DataError, match="question q000 is not the same for 'a' and 'b'"):
        compare_models(make_evaluation([first], "a"), make_evaluation([second], "b"))
