"""The internal format: what a good row becomes, and how every kind of bad row is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mrpo.choices import DataKind
from mrpo.config import Config, DataConfig, EvalConfig, ModelConfig, RolloutConfig
from mrpo.data.checks import RowChecks, require_folder
from mrpo.data.jsonl import FIELDS, read_jsonl, write_jsonl
from mrpo.data.load import Dataset, load_dataset
from mrpo.errors import DataError
from mrpo.types import Example


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with images good and bad."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "good.png")
    image.save(tmp_path / "two  spaces.jpg")
    whole = (tmp_path / "two  spaces.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def row(**changes: Any) -> dict[str, Any]:
    fields = {
        "id": "a",
        "image": "good.png",
        "question": "Which side?",
        "answer": "left",
        "rationale": "It is left.",
        "dataset": "d",
        "split": "train",
        "license": "CC0-1.0",
    }
    return {**fields, **changes}


def write_rows(root: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    """A JSONL file of objects, or of lines as they are."""
    file = root / "rows.jsonl"
    lines = [
        item if isinstance(item, bytes) else (item if isinstance(item, str) else json.dumps(item)).encode("utf-8")
        for item in rows
    ]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def read(root: Path, *rows: dict[str, Any] | str | bytes, max_bad_rows: int = 0) -> list[Example]:
    return read_jsonl(write_rows(root, *rows), root=root, checks=RowChecks(max_bad_rows=max_bad_rows))


# Good rows


def test_examples_survive_writing_and_reading(root: Path) -> None:
    examples = [
        Example(
            id=f"id{number}",
            image=str(root / "good.png"),
            question=question,
            answer="2.5 cm",
            rationale=rationale,
            dataset="d",
            split="test",
            license="CC-BY-4.0",
        )
        for number, (question, rationale) in enumerate(
            [("Größe?", None), ('Quote "this"?', "First.\nSecond: α.\u2028Third."), ("肝臓?", "\\backslash")]
        )
    ]
    file = root / "out.jsonl"
    write_jsonl(examples, file, root=root)
    assert read_jsonl(file, root=root, checks=RowChecks(max_bad_rows=0)) == examples
    assert [json.loads(line)["image"] for line in file.read_text(encoding="utf-8").split("\n") if line] == [
        "good.png"
    ] * 3
    assert set(json.loads(file.read_text(encoding="utf-8").split("\n")[0])) == set(FIELDS)


def test_numbers_become_text_and_white_space_one_space(root: Path) -> None:
    one, two, three = read(
        root, row(answer=2), row(id="b", answer=3.5, question="  Which \n side? "), row(id=3, rationale=None)
    )
    assert (one.answer, two.answer, two.question) == ("2", "3.5", "Which side?")
    assert (three.id, three.rationale) == ("3", None)


def test_blank_lines_are_no_rows_but_count_as_lines(root: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 4: "):
        read(root, row(), "", "  ", "{")


def test_a_file_name_is_taken_as_written(root: Path) -> None:
    (example,) = read(root, row(image="two  spaces.jpg"))
    assert example.image == str(root / "two  spaces.jpg")


# Bad rows


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_named(root: Path, name: str) -> None:
    bad = row()
    del bad[name]
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: field '{name}' is missing"):
        read(root, row(id="first"), bad)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "rationale"])
@pytest.mark.parametrize("value", ["", " \t\n", None, [], {}, True, float("nan"), float("inf"), "\ud800"])
def test_an_empty_field_is_named(root: Path, name: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: field '{name}' is empty or not text"):
        read(root, row(id="first"), row(**{name: value}))


@pytest.mark.parametrize("value", ["", "  ", 3, True, [], ["It is left."], "half a pair: \udc00"])
def test_a_rationale_is_text_or_null(root: Path, value: object) -> None:
    with pytest.raises(DataError, match=r"row 1: field 'rationale' must be text or null, got"):
        read(root, row(rationale=value))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("absent.png", r"absent\.png does not exist"),
        ("folder.png", r"folder\.png does not exist"),
        ("cut.jpg", r"cut\.jpg cannot be read \(.*truncated"),
        ("cut.png", r"cut\.png cannot be read"),
        ("text.png", r"text\.png cannot be read \(cannot identify"),
        ("empty.png", r"empty\.png cannot be read"),
        ("x" * 300 + ".png", r"cannot be read \(.*too long"),
        ("null\x00byte.png", r"does not exist|cannot be read"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_with_the_reason(root: Path, image: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: image .*{reason}"):
        read(root, row(id="first"), row(image=image))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", r"not JSON \(Expecting property name.*, column 2\)"),
        ('{"id": "a",}', r"not JSON \(.*, column \d+\)"),
        ("version https://git-lfs.github.com/spec/v1", r"not JSON \(Expecting value, column 1\)"),
        (b'{"id": "\xff\xfe"}', r"not UTF-8 \(byte 8\)"),
        ("[1, 2]", "expected an object, got list"),
        ("7", "expected an object, got int"),
        ("[" * 100_000, "JSON that cannot be read"),
        ('{"id": ' + "9" * 5000 + "}", "JSON that cannot be read"),
    ],
)
def test_a_line_that_is_no_object_is_named_with_the_reason(root: Path, line: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: {reason}"):
        read(root, row(id="first"), line)


def test_a_repeated_id_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: field 'id' repeats 'a'"):
        read(root, row(), row(id="b"), row(answer="right"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore"))))
def test_no_line_is_worse_than_a_bad_row(root: Path, line: bytes) -> None:
    checks = RowChecks(max_bad_rows=1000)
    assert read_jsonl(write_rows(root, line), root=root, checks=checks) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data(), kind=st.sampled_from(["good.png", "two  spaces.jpg"]))
def test_no_damage_to_an_image_is_worse_than_a_bad_row(root: Path, data: st.DataObject, kind: str) -> None:
    content = bytearray((root / kind).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = root / "damaged.png"
    damaged.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    fault = RowChecks(max_bad_rows=0).image_fault(damaged)
    assert fault is None or str(damaged) in fault


# Tolerated bad rows


def test_bad_rows_up_to_the_limit_are_dropped_with_a_report(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    checks = RowChecks(max_bad_rows=2)
    file = write_rows(root, row(), "{", row(id="b"), row(id="c", image="absent.png"))
    with caplog.at_level(logging.WARNING):
        examples = read_jsonl(file, root=root, checks=checks)
    assert [example.id for example in examples] == ["a", "b"]
    assert len(checks.bad_rows) == 2
    assert checks.bad_rows[0].startswith(f"{file}, row 2: not JSON")
    assert checks.bad_rows[1].startswith(f"{file}, row 4: image ")
    assert [record.getMessage() for record in caplog.records] == [f"dropped: {line}" for line in checks.bad_rows]


def test_one_bad_row_more_fails_and_says_how_many(root: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: .*3 bad so far, data\.max_bad_rows=2"):
        read(root, "{", "[]", "7", row(), max_bad_rows=2)


def test_a_dropped_row_does_not_take_its_id(root: Path) -> None:
    (example,) = read(root, row(image="absent.png"), row(answer="right"), max_bad_rows=1)
    assert example.answer == "right"


def test_the_limit_counts_over_all_files_of_a_data_set(root: Path) -> None:
    for split in ("train", "test"):
        rows = [json.dumps(row(id=f"{split}{number}", split=split)) for number in range(4)]
        (root / f"{split}.jsonl").write_text("\n".join([*rows, "{"]))
    assert len(load(root, max_bad_rows=2).bad_rows) == 2
    with pytest.raises(DataError, match=r"test\.jsonl, row 5: .*2 bad so far"):
        load(root, max_bad_rows=1)


# Whole data sets


def load(root: Path | None, *, prompts_per_step: int = 4, evaluate: bool = True, **data: Any) -> Dataset:
    return load_dataset(
        Config(
            model=ModelConfig(path="a checkpoint"),  # a toy would have its warm-start scans drawn
            data=DataConfig(kind=DataKind.JSONL, root=str(root) if root else None, **data),
            rollout=RolloutConfig(prompts_per_step=prompts_per_step),
            eval=EvalConfig(before=evaluate, after=evaluate),
        )
    )


def fill(root: Path, *, num_train: int, num_test: int) -> None:
    for split, count in (("train", num_train), ("test", num_test)):
        rows = [json.dumps(row(id=f"{split}{number}", split=split)) + "\n" for number in range(count)]
        (root / f"{split}.jsonl").write_text("".join(rows))


def test_the_first_questions_are_used_when_there_are_more(root: Path) -> None:
    fill(root, num_train=9, num_test=5)
    dataset = load(root, num_train=6, num_test=2)
    assert [example.id for example in dataset.train] == [f"train{number}" for number in range(6)]
    assert [example.id for example in dataset.test] == ["test0", "test1"]
    assert dataset.warm == [] and dataset.bad_rows == []
    whole = load(root, num_train=None, num_test=None)
    assert (len(whole.train), len(whole.test)) == (9, 5)


def test_images_are_absolute_wherever_the_command_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, num_train=4, num_test=1)
    monkeypatch.chdir(root.parent)
    dataset = load(Path(root.name))
    assert {example.image for example in dataset.train} == {str(root / "good.png")}


def test_too_few_training_questions_for_a_step(root: Path) -> None:
    fill(root, num_train=3, num_test=1)
    with pytest.raises(DataError, match=r"3 usable training questions are fewer than rollout\.prompts_per_step=4"):
        load(root)


def test_no_test_questions_matter_only_when_there_is_an_evaluation(root: Path) -> None:
    fill(root, num_train=4, num_test=0)
    with pytest.raises(DataError, match=r"no test questions; switch eval\.before"):
        load(root)
    assert load(root, evaluate=False).test == []


def test_a_missing_root_and_a_missing_file_name_the_setting(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root=.*/nothing is not a folder"):
        load(root / "nothing")
    with pytest.raises(DataError, match=r"data\.root=None is not a folder"):
        require_folder(None, "data.root")
    with pytest.raises(DataError, match=r"data\.root=.*good\.png is not a folder"):
        load(root / "good.png")
    with pytest.raises(DataError, match=r"train\.jsonl does not exist; data\.root must point"):
        load(root)
