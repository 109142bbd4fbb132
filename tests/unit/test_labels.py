"""Labels: the set that ships, the two file forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo.calibration.labels import Mark, digest_of_labels, majority, read_labels
from mrpo.calibration.phantom_labels import PHANTOM_LABELS, phantom_rows, phantom_text
from mrpo.calibration.sheets import write_sheet
from mrpo.errors import DataError
from mrpo.phantom.language import rule_steps


def row(**changes: Any) -> dict[str, Any]:
    labels = [{"alignment": 1, "contribution": 0}, {"alignment": 0, "contribution": 1}]
    base = {
        "id": "a",
        "image": None,
        "question": "Which side?",
        "answer": "left",
        "rationale": "A CT. It is on the left.",
        "steps": ["A CT.", "On the right."],
        "labels": labels,
    }
    return {**base, **changes}


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "labels.jsonl"
    file.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in rows))
    return file


def test_the_shipped_set_is_what_the_generator_makes() -> None:
    assert PHANTOM_LABELS.read_text(encoding="utf-8") == phantom_text()


def test_the_shipped_labels_are_exact_and_many_and_of_every_kind() -> None:
    completions = read_labels(PHANTOM_LABELS)
    assert sum(len(item.steps) for item in completions) >= 400
    marks: set[tuple[bool, bool]] = set()
    for item in completions:
        (labels,) = item.labels.values()
        ruled = rule_steps(item.steps, question=item.question, answer=item.answer, rationale=item.rationale)
        assert labels == ruled, item.id
        marks |= set(zip(labels.alignment, labels.contribution, strict=True))
    assert marks == {(False, False), (True, False), (True, True)}
    assert len({item.question for item in completions}) == 6
    assert any("" in item.steps for item in completions)
    shares = [sum(filter(None, item.reference(Mark.VALID))) / len(item.steps) for item in completions]
    assert 0.4 < sum(shares) / len(shares) < 0.6


def test_several_annotators_of_one_completion_are_joined_and_their_majority_is_the_reference(tmp_path: Path) -> None:
    strict = [{"alignment": 0, "contribution": 0}] * 2
    kind = [{"alignment": 1, "contribution": 1}, {"alignment": 1, "contribution": 0}]
    file = write(tmp_path, row(annotator="A"), row(annotator="B", labels=strict), row(id="b"))
    both, alone = read_labels(file)
    assert list(both.labels) == ["A", "B"]
    assert both.reference(Mark.ALIGNMENT) == [None, False]
    assert alone.reference(Mark.VALID) == [True, True]
    three = read_labels(
        write(tmp_path, row(annotator="A"), row(annotator="B", labels=strict), row(annotator="C", labels=kind))
    )
    assert three[0].reference(Mark.ALIGNMENT) == [True, False]
    assert three[0].reference(Mark.VALID) == [True, True]
    assert majority([True, False]) is None


def test_a_spreadsheet_holds_the_same_labels(tmp_path: Path) -> None:
    rows = [
        *phantom_rows()[:5],
        row(steps=["=1+1", "'quoted", "-", 'a; b, "c"\nd'], labels=[{"alignment": 1, "contribution": 0}] * 4),
    ]
    lines = read_labels(write(tmp_path, *rows))
    for delimiter in (",", ";"):
        file = tmp_path / "labels.csv"
        text = write_sheet(rows)
        assert "'=1+1" in text
        if delimiter == ";":
            import csv
            import io

            out = io.StringIO()
            csv.writer(out, delimiter=";").writerows(csv.reader(io.StringIO(text, newline="")))
            text = out.getvalue()
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as spreadsheets save it
        assert read_labels(file) == lines


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "row 2: not JSON"),
        ("[1]", "row 2: expected an object, got list"),
        ({"id": "b"}, "row 2: field 'image' is missing"),
        (row(id="b", extra=1), "unknown field 'extra'"),
        (row(id=""), "field 'id' is ''; expected text"),
        (row(id="b", steps=[]), r"field 'steps' is \[\]"),
        (row(id="b", steps=[1, ""]), r"field 'steps\[0\]' is 1"),
        (row(id="b", labels=[{"alignment": 1, "contribution": 1}]), "1 labels for 2 steps"),
        (row(id="b", labels=[{"alignment": 1}] * 2), r"field 'labels\[0\]' is \{'alignment': 1\}"),
        (
            row(id="b", labels=[{"alignment": 1, "contribution": None}] * 2),
            r"labels\[0\].contribution' is not labelled",
        ),
        (
            row(id="b", labels=[{"alignment": True, "contribution": 0}] * 2),
            r"labels\[0\].alignment' is True; expected 0",
        ),
        (row(id="b", labels=[{"alignment": 2, "contribution": 0}] * 2), r"labels\[0\].alignment' is 2"),
        (row(id="b", image="no.png"), "field 'image' names .*no.png, which is no file"),
        (row(), "labelled twice by annotator 'without a name'"),
        (row(annotator="B"), "labelled twice by annotator 'B'"),
        (row(annotator="B", answer="right"), "another answer"),
    ],
)
def test_what_is_wrong_is_named_with_file_row_and_field(tmp_path: Path, bad: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_labels(write(tmp_path, row(), bad))
    assert str(tmp_path / "labels.jsonl") in str(caught.value)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_labels(tmp_path / "labels.jsonl")
    with pytest.raises(DataError, match="no labelled completion"):
        read_labels(write(tmp_path, ""))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step,alignment", "step,aligned", "column 'alignment' is missing"),
        ("left,A CT. It is on the left.,,,2,", "left,A CT. It is on the left.,,,3,", "'3'; expected 2"),
        ("left,A CT. It is on the left.,,,2,", "right,A CT. It is on the left.,,,2,", "column 'answer' differs"),
        (",A CT.,1,0", ",A CT.,1,", "not labelled yet"),
        (",A CT.,1,0", ",A CT.,yes,0", "'yes'; expected 0 or 1"),
        (",A CT.,1,0", ",A CT.,1", "another number of cells"),
    ],
)
def test_a_damaged_spreadsheet_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = write_sheet([row()])
    assert old in text
    file = tmp_path / "labels.csv"
    file.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=said):
        read_labels(file)


def test_the_digest_follows_what_is_labelled_and_not_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    digest = digest_of_labels(read_labels(write(tmp_path, row())))
    assert digest == digest_of_labels(read_labels(write(tmp_path / "other", row())))
    swapped = row(labels=row()["labels"][::-1])
    assert digest != digest_of_labels(read_labels(write(tmp_path, swapped)))
