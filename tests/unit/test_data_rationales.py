"""MedThink's rationales find their questions by image, question and answer, and by nothing less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrpo.data.prepare import Prepared
from mrpo.data.rationales import image_key, normalise
from mrpo.errors import DataError
from tests.unit.prepared_sets import (
    image_bytes,
    rows_of,
    run,
    slake_row,
    write_image,
    write_json,
    write_parquet,
    write_slake,
)


def rationale(question: str, answer: object, image: str = "a.png", **changes: Any) -> dict[str, Any]:
    """A record as MedThink has it."""
    return {
        "question": question,
        "choices": ["left lung", "right lung"],
        "answer": answer,
        "image": image,
        "answer_type": "OPEN",
        "solution": f"Because of {question}",
        **changes,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VQA-RAD with one image and three open training questions."""
    source = tmp_path / "rad"
    write_image(source / "images" / "a.png", 1)
    write_image(source / "images" / "b.png", 2)
    rows = [("Where is it ?", "Left  lung"), ("Which organ?", "right lung"), ("Who?", "nobody"), ("Is it?", "yes")]
    write_json(
        source / "train.json",
        [
            {"qid": number, "image_name": "a.png", "question": question, "answer": answer}
            for number, (question, answer) in enumerate(rows)
        ],
    )
    write_json(source / "test.json", [{"qid": 9, "image_name": "b.png", "question": "Where?", "answer": "here"}])
    return source


def join(root: Path, tmp_path: Path, records: object, **settings: Any) -> Prepared:
    write_json(tmp_path / "medthink" / "R-RAD" / "open-end" / "trainset.json", records)
    return run(root, tmp_path / "out", rationales=str(tmp_path / "medthink"), **settings)


def test_the_answer_may_be_an_index_or_text_and_writing_may_differ(root: Path, tmp_path: Path) -> None:
    records = {"0": rationale("where is it?", 0), "1": rationale("Which  organ ?", "Right lung")}
    prepared = join(root, tmp_path, records)
    assert [(row["question"], row["rationale"]) for row in rows_of(tmp_path / "out", "train")] == [
        ("Where is it ?", "Because of where is it?"),
        ("Which organ?", "Because of Which organ ?"),
    ]
    counts = prepared.funnel.splits["train"]
    assert counts.left_out == {"answered yes or no": 1, "no rationale": 1}
    assert (counts.read, counts.kept, counts.joined) == (4, 2, 2)
    assert prepared.manifest["rationales"]["splits"]["train"] == {
        "read": 2,
        "bad": 0,
        "repeated": 0,
        "joined": 2,
        "without_a_question": 0,
    }


def test_all_three_parts_of_the_key_must_agree(root: Path, tmp_path: Path) -> None:
    records = [
        rationale("Where is it?", 1),  # another answer
        rationale("Where is this?", 0),  # another question
        rationale("Where is it?", 0, image="b.png"),  # another image
        rationale("Which organ?", 1),
    ]
    prepared = join(root, tmp_path, records)
    assert [row["question"] for row in rows_of(tmp_path / "out", "train")] == ["Which organ?"]
    assert prepared.manifest["rationales"]["splits"]["train"]["without_a_question"] == 3


def test_a_rationale_of_training_is_none_for_the_test(root: Path, tmp_path: Path) -> None:
    records = [rationale("Where?", "here", image="b.png"), rationale("Which organ?", 1)]
    join(root, tmp_path, records)
    (held_out,) = rows_of(tmp_path / "out", "test")
    assert held_out["rationale"] is None
    write_json(tmp_path / "medthink" / "R-RAD" / "open-end" / "testset.json", records[:1])
    write_json(tmp_path / "medthink" / "R-RAD" / "close-end" / "testset.json", ["is never read"])
    run(root, tmp_path / "out", rationales=str(tmp_path / "medthink"))
    (held_out,) = rows_of(tmp_path / "out", "test")
    assert held_out["rationale"] == "Because of Where?"


def test_training_questions_without_a_rationale_may_be_kept(root: Path, tmp_path: Path) -> None:
    join(root, tmp_path, [rationale("Which organ?", 1)], require_rationale=False)
    rationales = [row["rationale"] for row in rows_of(tmp_path / "out", "train")]
    assert rationales == [None, "Because of Which organ?", None]


def test_the_first_of_repeated_rationales_stays(root: Path, tmp_path: Path) -> None:
    prepared = join(root, tmp_path, [rationale("Which organ?", 1), rationale("Which organ?", 1, solution="Other.")])
    assert rows_of(tmp_path / "out", "train")[0]["rationale"] == "Because of Which organ?"
    assert prepared.manifest["rationales"]["splits"]["train"]["repeated"] == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (rationale("Where?", 2), "field 'answer' is no text and no index into 'choices': 2"),
        (rationale("Where?", -1), ".*no index into 'choices': -1"),
        (rationale("Where?", True), ".*no index into 'choices': True"),
        (rationale("Where?", 0, solution=""), "field 'solution' is empty or not text: ''"),
        (rationale("Where?", 0, image=None), "neither field 'image' nor 'img_name' names an image"),
        (["row"], "expected an object, got list"),
    ],
)
def test_bad_rationales_are_named(root: Path, tmp_path: Path, bad: object, reason: str) -> None:
    records = [rationale("Which organ?", 1), bad]
    with pytest.raises(DataError, match=rf"open-end/trainset\.json, row 2: {reason}"):
        join(root, tmp_path, records)
    prepared = join(root, tmp_path, records, max_bad_rows=1)
    assert prepared.manifest["rationales"]["splits"]["train"]["bad"] == 1


def test_lfs_pointers_say_what_to_do(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "medthink" / "R-RAD" / "open-end" / "trainset.json"
    file.parent.mkdir(parents=True)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:33b9\nsize 1244889\n")
    with pytest.raises(DataError, match=r"trainset\.json is a Git LFS pointer .*git lfs pull"):
        run(root, tmp_path / "out", rationales=str(tmp_path / "medthink"))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_the_published_one_is_told(root: Path, tmp_path: Path) -> None:
    prepared = join(root, tmp_path, [rationale("Which organ?", 1)])
    assert prepared.manifest["rationales"]["as_published"] == {"R-RAD/open-end/trainset.json": False}


def test_slake_images_are_known_by_folder_and_name(tmp_path: Path) -> None:
    source = tmp_path / "slake"
    write_slake(source)
    write_json(source / "train.json", [slake_row(1, "xmlab1/source.jpg"), slake_row(2, "xmlab2/source.jpg")])
    records = {"7": rationale("which organ is abnormal?", "lung", image="", img_name="xmlab2_source.jpg")}
    write_json(tmp_path / "open" / "train.json", records)  # the bare files, without MedThink's folders
    run(source, tmp_path / "out", "slake", rationales=str(tmp_path / "open"))
    assert [row["image"] for row in rows_of(tmp_path / "out", "train")] == ["images/xmlab2/source.jpg"]


def test_pathvqa_images_are_known_by_their_bytes(tmp_path: Path) -> None:
    """MedThink names files that the parquet does not: the files of those names tell which rows are meant."""
    source, medthink = tmp_path / "pathvqa", tmp_path / "medthink"
    rows = [
        {"image": {"bytes": image_bytes(seed), "path": None}, "question": "what is shown?", "answer": "cells"}
        for seed in (1, 2)
    ]
    write_parquet(source / "data" / "train-00000-of-00001.parquet", rows)
    write_parquet(source / "data" / "test-00000-of-00001.parquet", rows[:1])
    write_image(medthink / "images" / "train_0002.png", 2)
    records = [rationale("What is shown ?", "cells", image="train_0002.png")]
    write_json(medthink / "R-PathVQA" / "open-end" / "trainset.json", records)
    prepared = run(source, tmp_path / "out", "pathvqa", rationales=str(medthink))
    (joined,) = rows_of(tmp_path / "out", "train")
    assert (tmp_path / "out" / joined["image"]).read_bytes() == image_bytes(2)
    assert joined["rationale"] == "Because of What is shown ?"
    assert prepared.manifest["rationales"]["splits"]["train"]["without_a_question"] == 0


def test_pathvqa_without_the_named_images_is_refused_and_says_which(tmp_path: Path) -> None:
    """Otherwise all training questions would go as having no rationale, and nobody would be told."""
    source, medthink = tmp_path / "pathvqa", tmp_path / "medthink"
    rows = [{"image": {"bytes": image_bytes(1), "path": None}, "question": "what is shown?", "answer": "cells"}]
    write_parquet(source / "train-00000-of-00001.parquet", rows)
    write_parquet(source / "test-00000-of-00001.parquet", rows)
    records = [rationale("what is shown?", "cells", image="train_0001.jpg")]
    write_json(medthink / "R-PathVQA" / "open-end" / "trainset.json", records)
    for require in (True, False):
        with pytest.raises(DataError, match=r"none of 1 train questions .* among 1, .*'train_0001\.jpg'.*") as caught:
            run(source, tmp_path / "out", "pathvqa", rationales=str(medthink), require_rationale=require)
        assert f"below {medthink} (data.rationales) or {source} (data.source)" in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_training_that_loses_every_question_is_refused(root: Path, tmp_path: Path) -> None:
    """The rationales here are of the test alone."""
    write_json(tmp_path / "only" / "R-RAD" / "open-end" / "testset.json", [rationale("Where?", "here", image="b.png")])
    with pytest.raises(DataError, match=r"no training question is left: 3 have no gold rationale.*require_rationale"):
        run(root, tmp_path / "out", rationales=str(tmp_path / "only"))
    kept = run(root, tmp_path / "out", rationales=str(tmp_path / "only"), require_rationale=False)
    assert kept.funnel.splits["train"].kept == 3


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("xmlab12/source.jpg", "xmlab12_source.jpg"),
        ("imgs/xmlab12/source.jpg", "xmlab12_source.jpg"),
        ("xmlab12_source.jpg", "xmlab12_source.jpg"),
        ("images\\synpic1.jpg", "synpic1.jpg"),
        ("other/source.jpg", "source.jpg"),
        ("", ""),
    ],
)
def test_image_keys(path: str, key: str) -> None:
    assert image_key(path) == key


@pytest.mark.parametrize(
    ("text", "normal"),
    [("Where  is\tit ?", "where is it?"), ("A , b ;C : d !", "a, b;c: d!"), (" 3.5 cm . ", "3.5 cm."), ("", "")],
)
def test_normalised_text(text: str, normal: str) -> None:
    assert normalise(text) == normal
