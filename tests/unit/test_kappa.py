"""Kappa against published values, a literal second implementation, and its behaviour under known noise."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mrpo.calibration.kappa import (
    Weights,
    band_of,
    cohen_kappa,
    kappa_error,
    kappa_interval,
    table_of,
    table_under_flips,
)

# R. Artstein, M. Poesio, 2008; the values that scikit-learn's own tests hold its cohen_kappa_score to.
TWO = [[20, 20], [10, 50]]
THREE_SHIFTED = table_of(
    [0] * 46 + [1] * 44 + [2] * 10,
    [0] * 50 + [1] * 40 + [2] * 10,
    num_categories=3,
)
FLEISS = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]  # J. L. Fleiss, B. Levin, M. C. Paik, 2003, §18.1


def literal_kappa(first: Sequence[int], second: Sequence[int], num_categories: int, power: int) -> float:
    """By the definition, one pair after the other; power 0 counts any disagreement as one."""
    num = len(first)

    def apart(a: int, b: int) -> float:
        return float(a != b) if power == 0 else float(abs(a - b) ** power)

    seen = sum(apart(a, b) for a, b in zip(first, second, strict=True)) / num
    chance = sum(apart(a, b) for a in first for b in second) / num**2
    return 1 - seen / chance


@pytest.mark.parametrize(
    ("weights", "value"), [(Weights.NONE, 0.9315), (Weights.LINEAR, 0.9412), (Weights.QUADRATIC, 0.9541)]
)
def test_weighted_and_unweighted_kappa_are_scikit_learns(weights: Weights, value: float) -> None:
    assert cohen_kappa(THREE_SHIFTED, weights=weights) == pytest.approx(value, abs=5e-5)


def test_kappa_is_what_scikit_learn_computes() -> None:
    # sklearn.metrics.cohen_kappa_score with all categories in `labels`, on 9 random pairs of raters.
    golden = json.loads((Path(__file__).parents[1] / "golden" / "kappa.json").read_text())
    assert len(golden["rows"]) == 9
    for row in golden["rows"]:
        for weights in Weights:
            assert cohen_kappa(row["table"], weights=weights) == pytest.approx(row[weights.value], abs=1e-12)


def test_kappa_of_two_and_three_categories_is_scikit_learns() -> None:
    assert cohen_kappa(TWO) == pytest.approx(0.348, abs=5e-4)
    assert cohen_kappa(np.transpose(TWO)) == cohen_kappa(TWO)
    table = table_of([0] * 46 + [1] * 44 + [2] * 10, [0] * 52 + [1] * 32 + [2] * 16, num_categories=3)
    assert cohen_kappa(table) == pytest.approx(0.8013, abs=5e-5)


@pytest.mark.parametrize("num_categories", [2, 3, 5])
@pytest.mark.parametrize(("weights", "power"), [(Weights.NONE, 0), (Weights.LINEAR, 1), (Weights.QUADRATIC, 2)])
def test_kappa_is_that_of_the_definition(num_categories: int, weights: Weights, power: int) -> None:
    rng = np.random.default_rng(num_categories)
    for _ in range(20):
        first = rng.integers(num_categories, size=40)
        second = np.where(rng.random(40) < 0.6, first, rng.integers(num_categories, size=40))
        expected = literal_kappa(first.tolist(), second.tolist(), num_categories, power)
        found = cohen_kappa(table_of(first.tolist(), second.tolist(), num_categories=num_categories), weights=weights)
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_extremes() -> None:
    assert cohen_kappa([[7, 0], [0, 3]]) == 1.0
    assert cohen_kappa([[0, 5], [5, 0]]) == -1.0
    assert cohen_kappa([[1, 1], [1, 1]]) == 0.0
    assert cohen_kappa([[9, 0], [0, 0]]) is None  # nothing but one word was said
    assert cohen_kappa([[0, 0], [0, 0]]) is None
    assert kappa_error([[9, 0], [0, 0]]) is None
    assert kappa_interval([[9, 0], [0, 0]]) is None
    perfect = kappa_interval([[7, 0], [0, 3]])
    assert perfect is not None
    assert (perfect.low, perfect.value, perfect.high, perfect.num) == (1.0, 1.0, 1.0, 10)


def test_the_error_is_the_textbooks() -> None:
    assert cohen_kappa(FLEISS) == pytest.approx(0.676, abs=5e-4)
    assert kappa_error(FLEISS) == pytest.approx(0.0877, abs=5e-5)


@pytest.mark.parametrize("weights", list(Weights))
def test_the_error_is_the_deviation_of_samples(weights: Weights) -> None:
    shares = np.array([[0.3, 0.06, 0.02], [0.05, 0.2, 0.07], [0.02, 0.03, 0.25]])
    rng = np.random.default_rng(1)
    tables = rng.multinomial(400, shares.ravel(), size=4000).reshape(-1, 3, 3)
    values = np.array([cohen_kappa(table, weights=weights) for table in tables])
    assert kappa_error(shares * 400, weights=weights) == pytest.approx(values.std(), rel=0.04)


def test_flips_cost_kappa_what_arithmetic_says() -> None:
    # Half of the labels are 1: pe = 1/2 whatever is flipped, so kappa = (0.9 − 0.5)/0.5.
    assert cohen_kappa(table_under_flips(0.5, 0.1)) == pytest.approx(0.8)
    # A fifth: ruled 1 are 0.2·0.9 + 0.8·0.1 = 0.26; pe = 0.2·0.26 + 0.8·0.74 = 0.644; kappa = 0.256/0.356.
    assert cohen_kappa(table_under_flips(0.2, 0.1)) == pytest.approx(0.256 / 0.356)
    assert cohen_kappa(table_under_flips(0.3, 0.5)) == pytest.approx(0.0)


def test_bands_begin_where_landis_and_koch_put_them() -> None:
    values = (-0.01, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    names = ["poor", "slight", "fair", "moderate", "substantial", "almost perfect", "almost perfect"]
    assert [band_of(value) for value in values] == names
    assert band_of(math.nextafter(0.8, 0)) == "substantial"
