"""The published numbers, and what the paper's average is."""

from __future__ import annotations

import pytest

from mrpo.data.sets import SETS
from mrpo.eval.cascade import Stage
from mrpo.eval.published import ACCURACIES, CASCADES, SET_SIZES, UNREPRODUCED, macro_mean, micro_mean


def test_the_published_average_is_the_micro_mean_except_where_named() -> None:
    means = {(row.family, row.method): micro_mean(row.accuracy) for row in ACCURACIES}
    printed = {(row.family, row.method): row.average for row in ACCURACIES}
    off = {name: round(mean, 2) for name, mean in means.items() if abs(mean - printed[name]) > 0.01}
    assert off == UNREPRODUCED
    assert set(off) == {("Qwen2.5-VL-7B", "SFT"), ("InternVL3-8B", "SFT")}
    assert (printed["Qwen2.5-VL-7B", "SFT"], printed["InternVL3-8B", "SFT"]) == (23.59, 27.94)


def test_the_macro_mean_is_not_what_was_printed() -> None:
    base = ACCURACIES[0]
    assert macro_mean(base.accuracy) == pytest.approx((42 + 58.29 + 17.1 + 28.35 + 5.18 + 19.06 + 27.2 + 15.08) / 8)
    assert abs(macro_mean(base.accuracy) - base.average) > 1


def test_rows_and_sets() -> None:
    assert len(ACCURACIES) == 16 and len({(row.family, row.method) for row in ACCURACIES}) == 16
    assert set(SET_SIZES) <= set(SETS)
    huatuo = ACCURACIES[-1]
    assert list(huatuo.accuracy) == list(SET_SIZES)[3:]  # the sets no one trained on
    assert all(list(row.accuracy) == list(SET_SIZES) for row in ACCURACIES[:-1])
    mrpo = next(row for row in ACCURACIES if row.name == "Qwen3-VL-8B MRPO")
    outside = {name: mrpo.accuracy[name] for name in huatuo.accuracy}
    assert micro_mean(outside) == pytest.approx(28.94, abs=0.01)  # as printed beside HuatuoGPT's 26.15


def test_published_cascades() -> None:
    assert [row.stages[Stage.EARLY] for row in CASCADES] == [64.0, 21.2, 21.4, 13.0]
    assert sum(CASCADES[0].stages.values()) == pytest.approx(100.0)
