"""Intervals and tests, against values by hand and known limits."""

from __future__ import annotations

import math

import pytest

from mrpo.eval.statistics import Interval, bootstrap_interval, mcnemar_p, paired_bootstrap, wilson_interval


def test_wilson_interval_by_hand() -> None:
    # 8 of 10 at z = 1.96: centre (0.8 + z²/20)/(1 + z²/10), half width z·sqrt(0.016 + z²/400)/(1 + z²/10)
    interval = wilson_interval(8, 10)
    assert interval is not None
    assert (interval.value, interval.num) == (0.8, 10)
    assert interval.low == pytest.approx(0.49016, abs=1e-5)
    assert interval.high == pytest.approx(0.94332, abs=1e-5)


def test_bootstrap_interval_of_constant_values_has_no_width() -> None:
    assert bootstrap_interval([2.0] * 5, seed=0) == Interval(value=2.0, low=2.0, high=2.0, num=5)


def test_bootstrap_interval_of_two_values_spans_them() -> None:
    # Both draws are the smaller value in a quarter of the resamples, and the larger in another quarter.
    assert bootstrap_interval([0.0, 1.0], seed=3) == Interval(value=0.5, low=0.0, high=1.0, num=2)


def test_bootstrap_interval_approaches_the_normal_one() -> None:
    interval = bootstrap_interval([0.0] * 300 + [1.0] * 700, seed=1)
    assert interval is not None
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert (interval.low, interval.high) == pytest.approx((0.7 - half, 0.7 + half), abs=3e-3)


def test_the_seed_decides() -> None:
    values = [float(value**2 % 17) for value in range(40)]
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)


def test_resamples_do_not_depend_on_how_they_are_held() -> None:
    # So long a sample is resampled in several pieces.
    interval = bootstrap_interval([0.0, 1.0] * 5000, seed=0, num_resamples=250)
    assert interval is not None
    assert 0.48 < interval.low < 0.5 < interval.high < 0.52


def test_paired_bootstrap_sees_a_gain_that_the_pairing_shows() -> None:
    before = [0.0, 1.0] * 50
    after = [1.0, 1.0] * 20 + before[40:]
    result = paired_bootstrap(before, after, seed=0)
    assert result is not None
    interval, p = result
    assert interval.value == pytest.approx(0.2)
    assert interval.low > 0.1
    assert p == pytest.approx(2 / 10_001)
    mirrored = paired_bootstrap(after, before, seed=0)
    assert mirrored is not None
    assert mirrored[0].value == pytest.approx(-0.2)
    assert mirrored[1] == p


def test_paired_bootstrap_of_no_change_is_certain_of_nothing() -> None:
    result = paired_bootstrap([0.0, 1.0, 1.0], [0.0, 1.0, 1.0], seed=0)
    assert result == (Interval(value=0.0, low=0.0, high=0.0, num=3), 1.0)


def test_mcnemar_by_hand() -> None:
    # 1 of 8 changed for the worse: 2·(C(8,0) + C(8,1))/2⁸
    assert mcnemar_p(7, 1) == mcnemar_p(1, 7) == pytest.approx(2 * 9 / 256)
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0


def test_nothing_observed_gives_nothing() -> None:
    assert wilson_interval(0, 0) is None
    assert bootstrap_interval([], seed=0) is None
    assert paired_bootstrap([], [], seed=0) is None
