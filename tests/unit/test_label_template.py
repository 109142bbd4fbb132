"""A blank sheet: from a run or from outputs, filled in and read back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.calibration.__main__ import main
from mrpo.calibration.job import prepare
from mrpo.calibration.labels import Mark, read_labels
from mrpo.calibration.template import UNKNOWN_LICENSE, rows_of_sets, rows_of_source, write_template
from mrpo.compose import compose_config
from mrpo.config import BenchmarkConfig
from mrpo.data.jsonl import write_jsonl
from mrpo.errors import ConfigError, DataError
from mrpo.rows import read_rows, write_rows
from tests.unit.synthetic_run import make_run
from tests.unit.test_eval_command import RIGHT, prepared


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with make_run(folder, num_steps=2, steps_done=2, num_questions=30, evaluations=("before", "after")) as made:
        return made.path


def filled(sheet: Path, annotator: str) -> Path:
    """As somebody fills it in: every step whose number is odd has both marks."""
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8-sig"), newline="")))
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), delimiter=";")
    writer.writeheader()
    for row in rows:
        mark = int(row["number"]) % 2
        writer.writerow({**row, "alignment": mark, "contribution": mark, "annotator": annotator})
    path = sheet.with_name("filled.csv")
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def test_a_sheet_of_a_run_is_filled_in_and_read_back(run: Path, tmp_path: Path) -> None:
    rows = rows_of_source(run, num_completions=12, seed=0)
    assert rows == rows_of_source(run, num_completions=12, seed=0)
    assert rows != rows_of_source(run, num_completions=12, seed=1)
    assert rows_of_source(run / "eval" / "after.parquet", num_completions=12, seed=0) == rows
    assert len({row["id"] for row in rows}) == 12
    sheet, instructions = write_template(tmp_path / "sheet.csv", rows)
    with pytest.raises(DataError, match=r"sheet\.csv row 2: field 'labels\[0\]\.alignment' is not labelled yet"):
        read_labels(sheet)
    labels = read_labels(filled(sheet, "Dr. A"))
    assert [item.id for item in labels] == [row["id"] for row in rows]
    assert [item.steps for item in labels] == [row["steps"] for row in rows]
    assert labels[0].reference(Mark.VALID) == [k % 2 == 0 for k in range(len(labels[0].steps))]
    assert labels[0].labels.keys() == {"Dr. A"}
    text = instructions.read_text(encoding="utf-8")
    assert "12 answers" in text
    assert "`sheet.csv`" in text


def test_all_completions_are_there_where_they_are_few(run: Path) -> None:
    rows = rows_of_source(run, num_completions=1000, seed=0)
    assert 0 < len(rows) <= 30
    assert all(row["rationale"] and row["steps"] for row in rows)


def test_a_sheet_of_outputs_and_one_of_questions_alone(tmp_path: Path) -> None:
    root = tmp_path / "data"
    examples = [replace(item, rationale="It is the right kidney.") for item in prepared(root)]
    write_jsonl(examples, root / "vqa_rad" / "test.jsonl", root=root / "vqa_rad")
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps([{"id": item.id, "text": RIGHT} for item in examples]))
    benchmark = BenchmarkConfig(sets=("vqa_rad",), root=str(root), generations=str(outputs))
    rows = rows_of_sets(benchmark, num_completions=3, seed=0)
    assert len(rows) == 3
    assert rows[0]["steps"] == ["An MRI of the kidney.", "The right side is affected."]
    (sheet, _) = write_template(root / "sheet.jsonl", rows)
    first = json.loads(sheet.read_text().splitlines()[0])
    assert first["image"] == "vqa_rad/images/scan.png", "from the sheet's folder, so that both can be moved"
    assert first["labels"] == [{"alignment": None, "contribution": None}] * 2
    alone = rows_of_sets(replace(benchmark, generations=None), num_completions=9, seed=0)
    assert [row["steps"] for row in alone] == [[""]] * 5


def test_what_cannot_be_judged_is_not_asked_to_be_labelled(tmp_path: Path) -> None:
    prepared(tmp_path / "data")  # without rationales
    with pytest.raises(DataError, match="no question has a gold rationale"):
        rows_of_sets(BenchmarkConfig(sets=("vqa_rad",), root=str(tmp_path / "data")), num_completions=9, seed=0)
    with pytest.raises(ConfigError, match="no completions there"):
        rows_of_source(tmp_path, num_completions=9, seed=0)


def test_labels_are_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text("labels")
    with pytest.raises(ConfigError, match="is there already"):
        write_template(file, [])
    with pytest.raises(ConfigError, match=r"ending in \.csv"):
        write_template(tmp_path / "sheet.xlsx", [])


def test_the_command_writes_a_sheet_and_checks_a_filled_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.csv"
    assert main([f"check.template={sheet}", f"check.source={run}", "check.num_completions=5"]) == 0
    assert "5 completions" in capsys.readouterr().out
    assert main([f"check.labels={sheet}", "judge=none"]) == 2
    assert "not labelled yet; give 0 or 1" in capsys.readouterr().err
    assert main([f"check.labels={filled(sheet, 'A')}", "judge=none"]) == 0
    assert "every label can be read" in capsys.readouterr().out
    assert main([f"check.template={tmp_path / 'empty.csv'}"]) == 0
    assert "the sheet is empty" in capsys.readouterr().out


@pytest.mark.parametrize("judge", ["oracle", "openai_compatible"])
def test_a_url_that_holds_a_secret_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], judge: str
) -> None:
    """The page shows the command; a check whose rulings are all on file never asks the endpoint."""
    url = "judge.url=http://u:hush@judge.example/v1"
    assert main([f"judge={judge}", url, "judge.model=m", f"runs_dir={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr()
    assert "judge.url holds a user name or password" in " ".join(said.err.split())
    assert "hush" not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


def test_the_oracle_is_refused_on_data_it_does_not_know(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "dataset": "slake"} for row in rows_of_source(run, num_completions=2, seed=0)]
    sheet, _ = write_template(tmp_path / "sheet.csv", [{**row, "image": None} for row in rows])
    assert main([f"check.labels={filled(sheet, 'A')}"]) == 2
    assert "judge.kind=oracle rules on phantom data only" in capsys.readouterr().err


def test_labels_with_and_without_images_do_not_mix(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of_source(run, num_completions=2, seed=0)
    rows[1]["image"] = None
    sheet, _ = write_template(tmp_path / "sheet.csv", rows)
    judge = ["judge=openai_compatible", "judge.url=http://127.0.0.1:9/v1", "judge.model=m"]
    assert main([f"check.labels={filled(sheet, 'A')}", *judge]) == 2
    assert "1 of 2 completions have no image" in capsys.readouterr().err


def test_restricted_data_are_not_sent_to_an_external_judge(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of_source(run, num_completions=2, seed=0)
    rows = [{**row, "dataset": "mimic", "license": "PhysioNet credentialed"} for row in rows]
    sheet, _ = write_template(tmp_path / "sheet.csv", rows)
    judge = ["judge=openai_compatible", "judge.url=https://judge.example/v1", "judge.model=m"]
    assert main([f"check.labels={filled(sheet, 'A')}", *judge]) == 2
    assert "may not be sent to an external judge" in capsys.readouterr().err


def test_data_of_a_run_are_not_sent_to_an_external_judge_until_their_license_is_filled_in(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [replace(row, dataset="mimic") for row in read_rows(run / "eval" / "after.parquet")]
    write_rows(tmp_path / "rows.parquet", rows)
    source = f"check.source={tmp_path / 'rows.parquet'}"
    assert main([f"check.template={tmp_path / 'sheet.csv'}", source, "check.num_completions=2"]) == 0
    assert "no external judge until its column `license` is filled in" in capsys.readouterr().out
    judge = ["judge=openai_compatible", "judge.url=https://judge.example/v1", "judge.model=m"]
    labels = filled(tmp_path / "sheet.csv", "A")
    assert main([f"check.labels={labels}", *judge]) == 2
    said = capsys.readouterr().err
    assert "may not be sent to an external judge (unknown; no external judge until filled in)" in " ".join(said.split())
    labels.write_text(labels.read_text("utf-8").replace(UNKNOWN_LICENSE, "Apache-2.0"), encoding="utf-8")
    config = compose_config([f"check.labels={labels}", *judge])
    assert {item.license for item in prepare(config).completions} == {"Apache-2.0"}


def test_phantoms_of_a_run_may_be_seen_by_anybody(run: Path) -> None:
    rows = rows_of_source(run, num_completions=9, seed=0)
    assert {(row["dataset"], row["license"]) for row in rows} == {("phantom", "generated")}
