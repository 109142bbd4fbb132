"""Intervals by formula, and the exact McNemar test."""

from __future__ import annotations

import pytest

from mrpo.eval.intervals import mcnemar_p, wilson_interval


def test_wilson_interval_by_hand() -> None:
    # 8 of 10 at z = 1.96: centre (0.8 + z²/20)/(1 + z²/10), half width z·sqrt(0.016 + z²/400)/(1 + z²/10)
    interval = wilson_interval(8, 10)
    assert interval is not None
    assert (interval.value, interval.num) == (0.8, 10)
    assert interval.low == pytest.approx(0.49016, abs=1e-5)
    assert interval.high == pytest.approx(0.94332, abs=1e-5)


def test_mcnemar_by_hand() -> None:
    # 1 of 8 changed for the worse: 2·(C(8,0) + C(8,1))/2⁸
    assert mcnemar_p(7, 1) == mcnemar_p(1, 7) == pytest.approx(2 * 9 / 256)
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0


def test_nothing_observed_gives_nothing() -> None:
    assert wilson_interval(0, 0) is None
