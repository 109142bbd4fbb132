"""The tables' cells, and the Markdown, LaTeX and JSON files, read back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrpo.eval.benchmark import measure
from mrpo.eval.evaluation import Evaluation
from mrpo.eval.pairing import PairedResult
from mrpo.eval.table_files import latex_table, markdown_table, results_tree, write_tables
from mrpo.eval.tables import Cell, Line, Table, p_value, result_tables
from tests.unit.evaluation_world import make_evaluation, make_facts, make_row, unrated

TRICKY = r"a_b & 50 % $x$ #1 {y} ~^\ | <b>*"


def two_models() -> list[Evaluation]:
    """200 questions of VQA-RAD and 4 of SLAKE; the second model is wrong on the first ten and unrated once."""
    rows = [make_row(n, correct=n < 83, valid=[True, n % 4 > 0, n % 2 > 0]) for n in range(200)]
    rows += [make_row(n, correct=True, dataset="slake") for n in range(200, 204)]
    second = [unrated(row) if n == 10 else make_row(n, correct=False) if n < 10 else row for n, row in enumerate(rows)]
    return [make_evaluation(rows), make_evaluation(second, TRICKY, notices=("a *weak* judge",))]


def read_markdown(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a heading, header first."""
    part = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in (cells[0], *cells[2:])]


def read_latex(text: str, label: str) -> list[list[str]]:
    """Cells of the table with a label, header first, small print and italics taken off."""
    body = re.split(r"\\label\{tab:" + label + r"\}", text)[1].split(r"\bottomrule")[0].split(r"\toprule")[1]
    rows = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
    return [re.split(r"(?<!\\) & ", row) for row in rows]


def test_markdown_round_trip(tmp_path: Path) -> None:
    write_tables(tmp_path, measure(two_models()))
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    rows = read_markdown(text, "Answer accuracy (%)")
    assert rows[0] == ["Model", "VQA-RAD n = 200", "SLAKE n = 4 (paper 706)", "Micro", "Macro"]
    assert rows[1][:2] == ["ours", "41.50 [34.9, 48.4]"]
    assert rows[2][0] == TRICKY
    mrpo = next(row for row in rows if row[0].startswith("*Qwen3-VL-8B MRPO"))
    assert mrpo[:3] == ["*Qwen3-VL-8B MRPO published*", "*41.50*", "*68.27*"]
    assert all(len(row) == 5 for row in rows) and len(rows) == 1 + 2 + 15  # HuatuoGPT has neither set
    counts = read_markdown(text, "Answers by set")
    assert [row[:6] for row in counts[4:6]] == [
        [TRICKY, "VQA-RAD non_yes_no", "200", "72", "1", "36.00"],
        ["", "SLAKE non_yes_no", "4", "4", "0", "100.00"],
    ]
    assert r"> a \*weak\* judge" in text
    assert "- seed: 0" in text and "judge-model" in text and "answer-1" in text


def test_latex_round_trip(tmp_path: Path) -> None:
    write_tables(tmp_path, measure(two_models()))
    text = (tmp_path / "results.tex").read_text(encoding="utf-8")
    rows = read_latex(text, "accuracy")
    assert rows[0][0] == "Model" and rows[1][1] == r"41.50 {\scriptsize [34.9, 48.4]}"
    assert rows[2][0] == (
        r"a\_b \& 50 \% \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} | "
        r"\textless{}b\textgreater{}*"
    )
    assert {len(row) for row in rows} == {5}
    assert [row[6] for row in read_latex(text, "paired")][1].startswith("$-$5.39")
    begun = re.findall(r"\\begin\{(\w+)\}", text)
    assert begun == ["table", "tabular"] * 5 and len(re.findall(r"\\end\{(\w+)\}", text)) == len(begun)
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 5
    assert text.isascii() or not set(text) & set("–−†“”’×")


def test_json_holds_every_number(tmp_path: Path) -> None:
    write_tables(tmp_path, measure(two_models()))
    tree = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    ours, other = tree["models"]["ours"], tree["models"][TRICKY]
    assert ours["accuracy"]["sets"]["vqa_rad"]["num_correct"] == 83
    assert ours["accuracy"]["micro"]["wilson"]["value"] == pytest.approx(87 / 204)
    assert ours["accuracy"]["macro"]["value"] == pytest.approx((0.415 + 1) / 2)
    assert ours["reasoning"]["by_set"]["vqa_rad"]["cascade"]["num_failing"] == 100  # every even question
    assert [error["prompt_id"] for error in other["judge_errors"]] == ["q010"]
    [pair] = tree["paired"]
    assert (pair["num_only_first"], pair["num_only_second"], pair["num_judge_errors"]) == (11, 0, 1)
    assert pair["mcnemar_p"] == pytest.approx(2 / 2**11)


def test_all_sets_show_the_average_as_printed() -> None:
    names = ("vqa_rad", "slake", "pathvqa", "pmc_vqa", "vqa_med_2021", "quilt_vqa", "radimagenet_vqa", "mimic_cxr_vqa")
    rows = [make_row(n, correct=True, dataset=name) for n, name in enumerate(names)]
    table = result_tables(measure([make_evaluation(rows, open_rules={})]))[0]
    by_name = {line.cells[0].text: [cell.text for cell in line.cells] for line in table.lines}
    assert by_name["Qwen3-VL-8B MRPO"][-2] == "29.09"
    assert by_name["HuatuoGPT-Vision-34B"] == [
        *("HuatuoGPT-Vision-34B", "–", "–", "–", "31.30", "9.65", "21.27", "33.60", "17.63", "26.15", "22.69†")
    ]


def test_nothing_judged_and_one_model_leave_tables_out() -> None:
    evaluation = Evaluation(facts=make_facts(), rows=[make_row(0, correct=True)])
    tables = result_tables(measure([evaluation]))
    assert [table.name for table in tables] == ["accuracy", "counts"]
    assert [column.text for column in tables[0].columns] == ["Model", "VQA-RAD"]  # one set has no means
    assert {len(line.cells) for line in tables[0].lines} == {2}


def test_groups_have_rules_and_published_rows_italics() -> None:
    cells = [Cell(text="x"), Cell(text="1.0", detail="[0.5, 1.5]")]
    lines = [Line(cells=cells), Line(cells=cells, is_published=True, begins_group=True)]
    table = Table(name="t", title="T", note="N", num_labels=1, columns=cells, lines=lines)
    assert latex_table(table).count(r"\midrule") == 2
    starred = replace(table, lines=[Line(cells=[Cell(text="*[a]"), Cell(text="1")])])
    assert "\n{}*[a] & 1 \\\\\n" in latex_table(starred)
    assert r"\textit{x} & \textit{1.0 {\scriptsize [0.5, 1.5]}} \\" in latex_table(table)
    assert markdown_table(table).splitlines()[-1] == r"| *x* | *1.0 \[0.5, 1.5\]* |"
    assert p_value(0.0004) == "< 0.001" and p_value(0.0464) == "0.046"


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"judge": "other"}, "judge (ours: judge-model; theirs: other)"),
        ({"step_rubric": "steps-2"}, "rubric for steps (ours: steps-1; theirs: steps-2)"),
        ({"answer_rubric": None}, "rubric for answers (ours: answer-1; theirs: none)"),
        ({"answer_kind": "mixed"}, "answers rated by (ours: none; theirs: mixed)"),
        ({"threshold": 0.5}, "threshold of a right answer (ours: none; theirs: 0.5)"),
    ],
)
def test_models_that_were_not_rated_alike_are_not_paired(change: dict[str, Any], shown: str) -> None:
    rows = [make_row(n, correct=n < 8) for n in range(10)]
    found = measure([make_evaluation(rows), make_evaluation(rows, "theirs", **change)])
    assert [notice for notice in found.notices if shown in notice] == found.notices != []
    paired = next(table for table in result_tables(found) if table.name == "paired")
    assert [cell.text for cell in paired.lines[0].cells] == ["ours", "theirs", *["–"] * 7]
    assert paired.lines[0].cells[1].detail.startswith("not rated alike: ")
    assert results_tree(found)["paired"] == [] and len(results_tree(found)["unpaired"]) == 1


def test_another_open_rule_of_a_shared_set_is_said() -> None:
    rows = [make_row(n, correct=n < 8) for n in range(10)]
    other = {"vqa_rad": "all", "pathvqa": "all"}
    found = measure([make_evaluation(rows), make_evaluation(rows, "theirs", open_rules=other)])
    assert len(found.notices) == 1 and "VQA-RAD" in found.notices[0]
    assert "(ours: non_yes_no; theirs: all)" in found.notices[0]
    assert isinstance(found.pairs[0], PairedResult)


def test_models_that_share_no_question_get_a_line() -> None:
    first, second = ([make_row(n, correct=True)] for n in (0, 1))
    found = measure([make_evaluation(first), make_evaluation(second, "theirs")])
    paired = next(table for table in result_tables(found) if table.name == "paired")
    assert paired.lines[0].cells[1] == Cell(text="theirs", detail="no question in common") and not found.notices


def test_an_interval_without_width_is_not_shown() -> None:
    rows = [make_row(0, correct=True, valid=[False, False]), make_row(1, correct=True, valid=[True, True])]
    tables = {table.name: table for table in result_tables(measure([make_evaluation(rows)]))}
    aligned = tables["reasoning"].lines[0].cells[-1]
    assert aligned.text == "50.0" and aligned.detail == "[0.0, 100.0]"
    accumulation = tables["cascade"].lines[0].cells[-1]  # of one completion
    assert (accumulation.text, accumulation.detail) == ("100.0", "–")
    assert tables["counts"].lines[0].cells[-1].text == "–"
