"""Failure cascades, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo.eval.cascade import (
    Stage,
    failure_accumulation_rate,
    failure_stage,
    far_curve,
    first_failure_point,
)


def verdicts(pattern: str) -> list[bool]:
    """One letter a step: v valid, x invalid."""
    return [letter == "v" for letter in pattern]


@pytest.mark.parametrize(
    ("pattern", "point", "stage", "rate"),
    [
        ("", None, None, None),
        ("vvv", None, None, None),
        ("x", 0.0, Stage.EARLY, None),
        ("xvv", 0.0, Stage.EARLY, 0.0),
        ("vxxv", 1 / 3, Stage.MID, 0.5),
        ("vvxx", 2 / 3, Stage.LATE, 1.0),
        ("vvvx", 1.0, Stage.LATE, None),
        ("vxvvv", 0.25, Stage.EARLY, 0.0),
        ("vvxvxxv", 1 / 3, Stage.MID, 0.5),
        ("vvvvxvv", 2 / 3, Stage.LATE, 0.0),
    ],
)
def test_measures_of_one_completion(pattern: str, point: float | None, stage: Stage | None, rate: float | None) -> None:
    assert first_failure_point(verdicts(pattern)) == point
    assert failure_stage(verdicts(pattern)) is stage
    assert failure_accumulation_rate(verdicts(pattern)) == rate


def test_far_curve_bins_are_half_open_from_below() -> None:
    # K = 6: the first failure of step k has the point (k − 1)/5, on the lower edge of a bin.
    patterns = ["xxvvvv", "xxxxxx", "vxvvvv", "vvxxxv", "vvvxxv", "vvvvxx", "vvvvvx", "vvvvvv", "x"]
    curve = far_curve(verdicts(pattern) for pattern in patterns)
    assert [(item.low, item.high) for item in curve] == [(0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1)]
    assert [item.mean_far for item in curve] == pytest.approx([(0.2 + 1.0) / 2, 0.0, 2 / 3, 0.5, 1.0])
    assert [item.num for item in curve] == [2, 1, 1, 1, 1]


@given(st.integers(1, 5), st.integers(0, 4))
def test_points_on_an_edge_fall_into_the_bin_above(scale: int, index: int) -> None:
    num_before, num_steps = index * scale, 5 * scale + 1
    curve = far_curve([[True] * num_before + [False] * (num_steps - num_before)])
    assert [item.num for item in curve] == [int(position == index) for position in range(5)]


@given(st.lists(st.booleans(), max_size=12))
def test_measures_are_shares(steps: list[bool]) -> None:
    point, rate = first_failure_point(steps), failure_accumulation_rate(steps)
    assert (point is None) == all(steps)
    assert point is None or 0.0 <= point <= 1.0
    assert rate is None or 0.0 <= rate <= 1.0
