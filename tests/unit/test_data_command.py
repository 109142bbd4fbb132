"""`python -m mrpo.data prepare`: settings, tables, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrpo.choices import OpenRule
from mrpo.data.__main__ import configure, main
from mrpo.data.settings import PrepareConfig
from mrpo.errors import ConfigError
from tests.unit.prepared_sets import write_image, write_json


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "rad"
    write_image(root / "images" / "a.png", 1)
    row = {"qid": 1, "image_name": "a.png", "question": "Which?", "answer": "lung"}
    write_json(root / "train.json", [row, {**row, "qid": 2, "answer": "yes"}])
    write_json(root / "test.json", [row])
    return root


def test_settings_of_the_command_line() -> None:
    words = ["data.set=slake", "data.out=o", "data.open_rule=all", "data.languages=[en,zh]", "data.exclude_leaks=true"]
    assert configure(["prepare", *words, "data.where.answer_type=OPEN"]) == PrepareConfig(
        set="slake",
        out="o",
        open_rule=OpenRule.ALL,
        languages=("en", "zh"),
        exclude_leaks=True,
        where={"answer_type": "OPEN"},
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "got no command; expected: python -m mrpo.data prepare"),
        (["evaluate"], "got evaluate; expected"),
        (["prepare"], r"data\.set is missing; expected data\.set=vqa_rad\|slake"),
        (["prepare", "data.set=slake"], r"data\.out is missing"),
        (["prepare", "set=slake", "out=o"], r"unknown setting 'set'; did you mean 'data\.set'\?"),
        (["prepare", "data.set=slake", "data.out=o", "data.sorce=x"], r"'data\.sorce'; did you mean 'data\.source'\?"),
        (["prepare", "data.set=slake", "data.out=o", "data.max_bad_rows=many"], r"data\.max_bad_rows='many'"),
        (["prepare", "data.set=slake", "data.out=o", "data.open_rule=some"], r"data\.open_rule='some'"),
        (["prepare", "data.set=slake", "~data.out"], "settings cannot be removed"),
        (["prepare", "data.set=[", "data.out=o"], "cannot read an override"),
        (["prepare", "data=7"], r"data\.set is missing"),
    ],
)
def test_wrong_settings_end_in_one_line(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        configure(words)
    assert "\n" not in str(caught.value)


def test_the_funnel_and_the_leaks_are_printed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "data.set=vqa_rad", f"data.source={source}", f"data.out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    for words in (
        ("train", "rows read", "2"),
        ("answered yes or no", "-1"),
        ("kept", "1"),
        ("test", "1", "1", "0", "1"),
    ):
        assert any(all(word in line for word in words) for line in printed.splitlines()), (words, printed)
    assert "open-ended rule: non_yes_no; license: CC0-1.0" in printed


def test_an_error_is_one_line_and_exit_code_2(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(source / "train.json", [{"qid": 1}])
    assert main(["prepare", "data.set=vqa_rad", f"data.source={source}", f"data.out={tmp_path / 'out'}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {source}/train.json, row 1: field 'image_name' is missing")


def test_what_the_user_writes_is_printed_as_it_stands(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets are markup and colons are emoji to the console, unless it is told otherwise."""
    rows = [{"image": "images/a.png", "problem": "Which?", "solution": "this", "kind": kind} for kind in ("x", ":x:")]
    write_json(source / "own" / "test.json", rows)
    write_image(source / "own" / "images" / "a.png", 1)
    words = ["data.set=published", f"data.source={source / 'own'}", f"data.out={tmp_path / 'out'}"]
    assert main(["prepare", *words, "data.where.kind=':x:'", "data.license='[bold] :x:'"]) == 0
    printed = capsys.readouterr().out
    assert "kind is not :x:" in printed
    assert "license: [bold] :x:" in printed
