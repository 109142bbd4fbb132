"""The benchmark's page and figures: what is drawn, and that nothing written by a model gets through as markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mrpo.eval.benchmark import Benchmark, measure
from mrpo.eval.cascade import summarise_cascades
from mrpo.report.benchmark import render_benchmark, write_benchmark, write_benchmark_report, write_figures
from mrpo.report.benchmark_figures import (
    BAR_END,
    LABEL_END,
    PLOT_BOTTOM,
    PLOT_TOP,
    far_figure,
    stages_of_all,
    stages_of_failing,
)
from tests.unit.evaluation_world import make_evaluation, make_row, unrated

EVIL = "<script>alert(1)</script>&"
SVG = "{http://www.w3.org/2000/svg}"


def benchmark(num_models: int = 2, *, judged: bool = True) -> Benchmark:
    """Models on the same questions; the first carries markup in its name and in a question with a judge error."""
    models = []
    for number in range(num_models):
        rows = [
            make_row(n, correct=(n + number) % 3 == 0, valid=[n % 2 > 0, n % 5 > number, True] if judged else None)
            for n in range(30)
        ]
        rows[3] = unrated(make_row(3, correct=False, question=EVIL))
        rows[4] = make_row(4, correct=True, dataset="slake")
        models.append(make_evaluation(rows, f"model {number}" if number else EVIL, notices=("weak judge",)))
    return measure(models)


def elements(html: str) -> list[str]:
    """Tag names of a page whose tags are balanced."""
    names: list[str] = []
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names.append(tag)
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(html)
    assert not open_tags
    return names


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    html = write_benchmark_report(benchmark(), tmp_path / "out" / "benchmark.html").read_text(encoding="utf-8")
    names = elements(html)
    assert names.count("svg") == 3 and "script" not in names and "link" not in names
    assert not re.search(r"(?:src|href)=", html)  # nothing is fetched
    assert EVIL not in html and "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in html
    for words in ("weak judge", "judge-model", "steps-1", "answer-1", "non_yes_no", "McNemar p", "no reply in 60 s"):
        assert words in html
    assert html.count('<tr class="published') == 15
    assert "2 calls ended without a ruling" in html


def test_everything_is_written_and_again_the_same(tmp_path: Path) -> None:
    evaluations = [
        make_evaluation([make_row(n, correct=n % 2 > 0, valid=[True, n > 1, True]) for n in range(4)], m) for m in "ab"
    ]
    paths = write_benchmark(tmp_path, evaluations)
    assert [str(path.relative_to(tmp_path)).replace("20251009_085322", "T") for path in paths] == [
        *("benchmark.html", "results.md", "results.tex", "results.json", "stages.svg", "stages_of_all.svg", "far.svg"),
        *("lmms_eval/a/T_results.json", "lmms_eval/a/T_samples_vqa_rad.jsonl"),
        *("lmms_eval/b/T_results.json", "lmms_eval/b/T_samples_vqa_rad.jsonl"),
    ]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_benchmark(tmp_path, evaluations)] == first


def test_a_page_without_verdicts_says_so() -> None:
    html = render_benchmark(benchmark(1, judged=False))
    assert "No completion's steps were judged" in html.replace("&#39;", "'")
    assert "svg" not in elements(html) and "Paired comparison" not in html


@pytest.mark.parametrize("num_models", [1, 9])
def test_figures_are_files_of_their_own(tmp_path: Path, num_models: int) -> None:
    paths = write_figures(tmp_path, benchmark(num_models))
    assert [path.name for path in paths] == ["stages.svg", "stages_of_all.svg", "far.svg"]
    for path in paths:
        root = ET.parse(path).getroot()
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        texts = ["".join(item.itertext()) for item in root.iter(f"{SVG}text")]
        assert any(text.startswith("<script>") for text in texts)
        for item in root.iter(f"{SVG}text"):
            assert 0 <= float(item.attrib["x"]) <= width and 0 <= float(item.attrib["y"]) <= height
        for item in root.iter(f"{SVG}rect"):
            assert float(item.attrib["x"]) + float(item.attrib["width"]) <= width


def test_stage_bars_by_hand() -> None:
    # first failures: early, early, late, none
    verdicts = [
        [False, True, True, True],
        [False, True, True, True],
        [True, True, True, False],
        [True, True, True, True],
    ]
    models = {"ours": summarise_cascades(verdicts, seed=0)}
    failing, of_all = stages_of_failing(models), stages_of_all(models)
    assert failing is not None and of_all is not None
    span = BAR_END - LABEL_END
    ours = failing.bars[0]
    assert [(part.style, part.width) for part in ours.parts] == [
        ("early", pytest.approx(span * 2 / 3, abs=0.1)),
        ("late", pytest.approx(span / 3, abs=0.1)),
    ]
    assert ours.number == "n = 3" and not ours.is_published
    assert [(bar.label, bar.is_published) for bar in failing.bars[1:]] == [
        (f"Qwen3-VL-8B {method}", True) for method in ("base", "GRPO", "GDPO", "MRPO")
    ]
    assert [part.style for part in failing.bars[1].parts] == ["early", "mid", "late"]
    assert [part.style for part in failing.bars[4].parts] == ["early", "rest"]
    assert [part.style for part in of_all.bars[0].parts] == ["early", "late", "none"]
    assert [bar.is_published for bar in of_all.bars] == [False]


def test_far_curves_by_hand() -> None:
    verdicts = [[False, True, True, False, True, True], [True, True, True, True, False, False]]  # FFP 0: 1/5; 0.8: 1
    figure = far_figure(
        {"ours": summarise_cascades(verdicts, seed=0), "spotless": summarise_cascades([[True]], seed=0)}
    )
    assert figure is not None
    ours = figure.curves[0]
    assert [point.y for point in ours.points] == [
        pytest.approx(PLOT_BOTTOM - 0.2 * (PLOT_BOTTOM - PLOT_TOP)),
        PLOT_TOP,
    ]
    assert [curve.label for curve in figure.curves] == [
        "ours",
        *(f"Qwen3-VL-8B {method}" for method in ("base", "GRPO", "GDPO", "MRPO")),
    ]
    assert len({curve.legend_y for curve in figure.curves}) == 5
    assert all(len(curve.points) == 5 and curve.points[0].whisker is None for curve in figure.curves[1:])
    assert [(point.whisker, point.note) for point in ours.points] == [(None, "1")] * 2  # of one completion each
    assert {point.note for curve in figure.curves[1:] for point in curve.points} == {""}


def test_nothing_to_draw() -> None:
    spotless = {"ours": summarise_cascades([[True, True]], seed=0)}
    assert stages_of_failing(spotless) is None and far_figure(spotless) is None
    assert stages_of_all({"ours": summarise_cascades([], seed=0)}) is None
