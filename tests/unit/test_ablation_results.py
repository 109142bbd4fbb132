"""The tables and the plot of a study, against values worked out by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mrpo.ablation.driver import StudyOutcome, run_study, study_folder
from mrpo.ablation.plan import make_plan
from mrpo.ablation.plot import write_plot
from mrpo.ablation.results import ResultRow, aggregate
from mrpo.ablation.tables import markdown, write_tables
from mrpo.eval.intervals import wilson_interval
from tests.unit.ablation_world import NUM_STEPS, STUDY, WALL_S, FakeTrainer, FakeWatcher

E = "2.718281828459045"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyOutcome]:
    """Two seeds of three runs; the last run of the second seed fails midway."""
    plan = make_plan(STUDY, ["seed=0,1"])
    folder = study_folder(plan, tmp_path_factory.mktemp("runs"))
    return folder, run_study(plan, folder, FakeTrainer(endings={5: "failed"}), FakeWatcher())


def test_a_row_has_the_numbers_of_its_run(study: tuple[Path, StudyOutcome]) -> None:
    folder, outcome = study
    row = outcome.rows[0]
    # of 10 questions 4 are right before and 7 after; 8 are judged, of which 6 fail early before and 2 after
    accuracy, early = wilson_interval(7, 10), wilson_interval(2, 8)
    assert accuracy is not None and early is not None
    assert (row.accuracy_before, row.accuracy_after) == (0.4, 0.7)
    assert (row.accuracy_after_low, row.accuracy_after_high) == (accuracy.low, accuracy.high)
    assert (row.early_before, row.early_after) == (6 / 8, 2 / 8)
    assert (row.early_after_low, row.early_after_high) == (early.low, early.high)
    assert (row.failing_before, row.failing_after) == (6 / 8, 3 / 8)  # one more fails late
    assert (row.far_before, row.far_after) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (row.num_questions, row.num_judged, row.num_steps) == (10, 8, NUM_STEPS)
    assert row.reward_end == (0.5 + 1.0 + 1.5 + 2.0) / 4
    assert (row.wall_s, row.status, row.error) == (WALL_S, "finished", None)
    assert row.run_folder is not None and (folder / row.run_folder / "state.json").is_file()
    assert not Path(row.run_folder).is_absolute()
    assert row.config_hash in row.run_folder
    assert row.commit is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", row.commit)


def test_rows_stand_axis_by_axis_with_seeds_side_by_side(study: tuple[Path, StudyOutcome]) -> None:
    rows = study[1].rows
    assert [(row.axis, row.settings, row.seed, row.is_default) for row in rows] == [
        ("base", "algorithm.base=1", 0, False),
        ("base", "algorithm.base=1", 1, False),
        ("base", f"algorithm.base={E}", 0, True),
        ("base", f"algorithm.base={E}", 1, True),
        ("schedule", "algorithm.schedule=exponential", 0, True),
        ("schedule", "algorithm.schedule=exponential", 1, True),
        ("schedule", "algorithm.schedule=linear", 0, False),
        ("schedule", "algorithm.schedule=linear", 1, False),
    ]
    assert rows[2].run_folder == rows[4].run_folder
    assert rows[3].config_hash == rows[5].config_hash != rows[2].config_hash


def test_a_failed_run_keeps_its_row_with_what_it_measured(study: tuple[Path, StudyOutcome]) -> None:
    row = study[1].rows[-1]
    assert (row.status, row.error, row.num_steps) == ("failed", "engine 0 died", 2)
    assert (row.accuracy_before, row.accuracy_after, row.early_after) == (0.4, None, None)
    assert row.reward_end == 0.75


def test_the_aggregate_is_over_finished_seeds_only(study: tuple[Path, StudyOutcome]) -> None:
    rows = study[1].rows
    changed = [replace(row, accuracy_after=0.5) if row.seed == 1 else row for row in rows]
    base, default, _, linear = aggregate(changed)
    spread = default.spreads["accuracy_after"]
    assert spread is not None
    assert (spread.mean, spread.low, spread.high, spread.num) == (pytest.approx(0.6), 0.5, 0.7, 2)
    assert (base.num_seeds, base.num_finished, base.is_default, default.is_default) == (2, 2, False, True)
    spread = linear.spreads["accuracy_after"]
    assert spread is not None
    assert (linear.num_seeds, linear.num_finished) == (2, 1)
    assert (spread.mean, spread.low, spread.high, spread.num) == (0.7, 0.7, 0.7, 1)


def test_parquet_holds_the_same_rows_under_the_same_names(study: tuple[Path, StudyOutcome]) -> None:
    folder, outcome = study
    assert [ResultRow(**row) for row in pq.read_table(folder / "results.parquet").to_pylist()] == outcome.rows
    sums = pq.read_table(folder / "aggregate.parquet").to_pylist()
    assert [row["settings"] for row in sums] == list(dict.fromkeys(row.settings for row in outcome.rows))
    linear = sums[-1]
    assert (linear["num_seeds"], linear["num_finished"], linear["accuracy_after_num"]) == (2, 1, 1)
    assert (linear["accuracy_after_mean"], linear["early_after_min"], linear["early_after_max"]) == (0.7, 0.25, 0.25)


def test_columns_keep_their_types_where_nothing_is_known_yet(tmp_path: Path) -> None:
    plan = make_plan(STUDY)
    outcome = run_study(plan, study_folder(plan, tmp_path), FakeTrainer(endings={0: "dies at once"}), FakeWatcher())
    unknown = [outcome.rows[0]]
    assert (unknown[0].accuracy_before, unknown[0].run_folder, unknown[0].num_steps) == (None, None, 0)
    write_tables(tmp_path, unknown)
    write_plot(tmp_path, unknown)
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "results.parquet")}
    assert (types["accuracy_after"], types["num_judged"], types["commit"]) == ("double", "int64", "string")
    assert pq.read_table(tmp_path / "aggregate.parquet").to_pylist()[0]["accuracy_after_mean"] is None


def test_markdown_reads_as_two_tables(study: tuple[Path, StudyOutcome]) -> None:
    folder, outcome = study
    text = (folder / "results.md").read_text()
    assert text == markdown(outcome.rows, aggregate(outcome.rows))
    assert f"| base | **algorithm.base={E}** | 2 of 2 | 70.0 % (70.0–70.0) | 25.0 % (25.0–25.0) | 37.5 %" in text
    assert "| schedule | algorithm.schedule=linear | 1 of 2 |" in text
    assert (
        "| base | algorithm.base=1 | 0 | finished | 40.0 % → 70.0 % (39.7–89.2) | 75.0 % → 25.0 % (7.1–59.1) |" in text
    )
    assert "| 1 min 30 s |" in text
    assert "- algorithm.schedule=linear, seed 1: engine 0 died" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {9, 13}  # every line has as many cells as its head


def test_the_plot_has_a_mark_for_every_measured_seed(study: tuple[Path, StudyOutcome], tmp_path: Path) -> None:
    rows = study[1].rows
    write_plot(tmp_path, rows)
    first = (tmp_path / "results.svg").read_bytes()
    root = ElementTree.fromstring(first)
    assert root.tag.endswith("svg")

    def num_marks(svg: bytes) -> int:
        return len(re.findall(rb"<use ", svg))

    write_plot(tmp_path, [replace(row, accuracy_after=None, early_after=None) for row in rows])
    without = (tmp_path / "results.svg").read_bytes()
    # seven of eight rows have a dot in each panel; letters are drawn the same way, and only the numbers differ
    assert num_marks(first) - num_marks(without) == 2 * 7
    write_plot(tmp_path, rows)
    assert (tmp_path / "results.svg").read_bytes() == first  # the same numbers, the same file
    assert sorted(item.name for item in tmp_path.iterdir()) == ["results.svg"]
