"""VQA-RAD as distributed: the open questions of the real files, and bad rows of made-up ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrpo.choices import DataKind
from mrpo.config import Config, DataConfig
from mrpo.data.checks import RowChecks
from mrpo.data.load import load_dataset
from mrpo.data.vqa_rad import read_vqa_rad
from mrpo.errors import DataError
from tests.locations import vqa_rad_folder


@pytest.fixture(scope="module")
def real_root() -> Path:
    """The real data set, where there is one."""
    root = vqa_rad_folder()
    if root is None:
        pytest.skip("no VQA-RAD here; set MRPO_VQA_RAD=<folder with train.json, test.json and images/>")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 40), 50.0).save(tmp_path / "images" / "synpic1.jpg")
    whole = (tmp_path / "images" / "synpic1.jpg").read_bytes()
    (tmp_path / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def row(qid: object = 1, **changes: Any) -> dict[str, Any]:
    fields = {"qid": qid, "image_name": "synpic1.jpg", "question": "Where is it?", "answer": "left lung"}
    return {**fields, "answer_type": "OPEN", "phrase_type": "freeform", **changes}


def read(root: Path, *rows: object, max_bad_rows: int = 0) -> list[tuple[str, str]]:
    """(id, answer) of the questions read from a test split of these rows."""
    (root / "test.json").write_text(json.dumps(rows))
    examples = read_vqa_rad(root, "test", checks=RowChecks(max_bad_rows=max_bad_rows))
    return [(example.id, example.answer) for example in examples]


# The real files


def test_the_test_split_has_200_open_questions(real_root: Path) -> None:
    rows = json.loads((real_root / "test.json").read_text())
    checks = RowChecks(max_bad_rows=0)
    examples = read_vqa_rad(real_root, "test", checks=checks)
    assert len(rows) == 451
    assert len(examples) == 200
    assert checks.bad_rows == []
    assert len({example.id for example in examples}) == 200
    assert all(example.rationale is None and Path(example.image).is_file() for example in examples)
    assert {(example.dataset, example.split, example.license) for example in examples} == {
        ("vqa_rad", "test", "CC0-1.0")
    }


def test_every_row_left_out_is_answered_yes_or_no(real_root: Path) -> None:
    rows = json.loads((real_root / "train.json").read_text())
    kept = {example.id for example in read_vqa_rad(real_root, "train", checks=RowChecks(max_bad_rows=0))}
    left_out = [item["answer"] for item in rows if f"vqa_rad-train-{item['qid']}" not in kept]
    assert {str(answer).strip().lower() for answer in left_out} == {"yes", "no"}
    assert len(left_out) + len(kept) == len(rows)


def test_numbers_in_the_real_answers_are_text(real_root: Path) -> None:
    numbers = [item for item in json.loads((real_root / "train.json").read_text()) if type(item["answer"]) is int]
    examples = {e.id: e for e in read_vqa_rad(real_root, "train", checks=RowChecks(max_bad_rows=0))}
    assert numbers, "the distributed file has some"
    for item in numbers:
        assert examples[f"vqa_rad-train-{item['qid']}"].answer == str(item["answer"])


def test_the_real_set_loads_for_a_run(real_root: Path) -> None:
    config = Config(data=DataConfig(kind=DataKind.VQA_RAD, root=str(real_root), num_train=50, num_test=None))
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.test)) == (50, 200)


# Made-up rows


def test_only_plain_yes_and_no_are_closed(root: Path) -> None:
    answers = ["Yes", "no", " NO ", "yes\n", "Yes, on the left", "not seen", "nodule", "none", 2]
    kept = read(root, *(row(qid, answer=answer) for qid, answer in enumerate(answers)))
    assert [answer for _, answer in kept] == ["Yes, on the left", "not seen", "nodule", "none", "2"]


def test_a_closed_question_by_its_type_is_kept_when_its_answer_is_open(root: Path) -> None:
    assert read(root, row(answer_type="CLOSED ", answer="Left")) == [("vqa_rad-test-1", "Left")]


@pytest.mark.parametrize("name", ["qid", "image_name", "question", "answer"])
@pytest.mark.parametrize("value", ["", " ", None, [], True])
def test_an_empty_field_is_named(root: Path, name: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"test\.json, row 2: field '{name}' is missing or empty"):
        read(root, row(7), row(**{name: value}))


def test_a_missing_field_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"test\.json, row 1: field 'question' is missing or empty"):
        read(root, {"qid": 1, "image_name": "synpic1.jpg", "answer": "left"})


def test_bad_images_are_named_also_of_closed_questions(root: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: image .*images/absent\.jpg does not exist"):
        read(root, row(image_name="absent.jpg", answer="yes"))
    with pytest.raises(DataError, match=r"row 1: image .*cut\.jpg cannot be read \(.*truncated"):
        read(root, row(image_name="cut.jpg"))


def test_a_repeated_question_id_is_named(root: Path) -> None:
    """Ids are keys: the second question would replace the first without a word."""
    with pytest.raises(DataError, match=r"row 3: field 'qid' repeats '1'"):
        read(root, row(1), row(2), row("1", question="Another one?"))


def test_rows_that_are_no_objects(root: Path) -> None:
    with pytest.raises(DataError, match="row 2: expected an object, got str"):
        read(root, row(), "row")


def test_bad_rows_up_to_the_limit_are_dropped(root: Path) -> None:
    rows = [row(1), row(2, answer=None), row(3, image_name="absent.jpg"), row(4)]
    assert read(root, *rows, max_bad_rows=2) == [("vqa_rad-test-1", "left lung"), ("vqa_rad-test-4", "left lung")]
    with pytest.raises(DataError, match=r"2 bad so far, data\.max_bad_rows=1"):
        read(root, *rows, max_bad_rows=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is not JSON"),
        (b'{"rows": []}', "expected a list of records, got dict"),
    ],
)
def test_a_file_that_is_no_list_of_records(root: Path, content: bytes, reason: str) -> None:
    (root / "test.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"test\.json.*{reason}.*get the file again"):
        read_vqa_rad(root, "test", checks=RowChecks(max_bad_rows=9))


def test_a_missing_file_names_the_setting(root: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json does not exist; data\.root must point"):
        read_vqa_rad(root, "train", checks=RowChecks(max_bad_rows=0))
