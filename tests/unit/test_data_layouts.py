"""Each layout, in files of the official schema: what becomes a question, what is left out, where images come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrpo.choices import OpenRule
from mrpo.data.layouts.pmc_vqa import answer_text
from mrpo.data.layouts.published import parts_of
from mrpo.data.layouts.splits import split_of
from mrpo.data.sets import SETS
from mrpo.data.source import SourceFile
from mrpo.errors import DataError
from tests.unit.prepared_sets import (
    image_bytes,
    rows_of,
    run,
    slake_row,
    write_csv,
    write_image,
    write_json,
    write_parquet,
    write_slake,
    write_zip,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def questions(out: Path, split: str) -> list[tuple[str, str, str]]:
    """(image, question, answer) of a prepared split."""
    return [(row["image"], row["question"], row["answer"]) for row in rows_of(out, split)]


# VQA-RAD


def test_vqa_rad_official_json_is_split_by_phrase_type(root: Path, tmp_path: Path) -> None:
    def row(qid: str, phrase: str, answer: object = "left lung") -> dict[str, Any]:
        fields = {"qid": qid, "image_name": "synpic1.jpg", "question": "Where?", "answer": answer}
        return {**fields, "phrase_type": phrase, "answer_type": "OPEN", "question_type": "POS", "image_organ": "CHEST"}

    rows = [row("1", "freeform"), row("2", "test_freeform", 2), row("3", "para"), row("4", "test_para", "No")]
    write_json(root / "VQA_RAD Dataset Public.json", rows)
    (root / "VQA_RAD Image Folder").mkdir()
    (root / "VQA_RAD Image Folder" / "synpic1.jpg").write_bytes(image_bytes(1, "JPEG"))
    run(root, tmp_path / "out")
    image = "images/VQA_RAD Image Folder/synpic1.jpg"
    assert questions(tmp_path / "out", "train") == [(image, "Where?", "left lung")] * 2
    assert questions(tmp_path / "out", "test") == [(image, "Where?", "2")]


def test_vqa_rad_parquet(root: Path, tmp_path: Path) -> None:
    def row(seed: int, answer: str) -> dict[str, Any]:
        return {"image": {"bytes": image_bytes(seed), "path": None}, "question": "Where?", "answer": answer}

    write_parquet(
        root / "data" / "train-00000-of-00001-eb8844.parquet", [row(1, "left"), row(1, "yes"), row(2, "right")]
    )
    write_parquet(root / "data" / "test-00000-of-00001.parquet", [row(1, "upper lobe")])
    prepared = run(root, tmp_path / "out")
    (one, _, answer), (two, _, _) = questions(tmp_path / "out", "train")
    assert (answer, one != two) == ("left", True)
    assert (tmp_path / "out" / one).read_bytes() == image_bytes(1)
    assert questions(tmp_path / "out", "test") == [(one, "Where?", "upper lobe")]
    assert prepared.leaks[0].num_identical == 1


# SLAKE


@pytest.mark.parametrize("zipped", [True, False])
def test_slake_is_english_by_default(root: Path, tmp_path: Path, zipped: bool) -> None:
    write_slake(root, zipped=zipped)
    prepared = run(root, tmp_path / "out", "slake")
    asked = "Which organ is abnormal ?"
    assert questions(tmp_path / "out", "train") == [("images/xmlab1/source.jpg", asked, "Lung")]
    assert questions(tmp_path / "out", "validation") == [("images/xmlab2/source.jpg", asked, "Lung")]
    assert questions(tmp_path / "out", "test") == []
    assert prepared.funnel.splits["train"].left_out == {"language zh": 1}
    assert (tmp_path / "out" / "images/xmlab1/source.jpg").read_bytes() == image_bytes(1, "JPEG")


def test_slake_in_more_languages(root: Path, tmp_path: Path) -> None:
    write_slake(root)
    write_json(root / "validation.json", [slake_row(7, "xmlab2/source.jpg", answer="Liver")])  # the newer name wins
    run(root, tmp_path / "out", "slake", languages=("en", "zh"))
    assert len(rows_of(tmp_path / "out", "train")) == 2
    assert [row["answer"] for row in rows_of(tmp_path / "out", "validation")] == ["Liver"]


# Other sets


def test_pathvqa_has_three_splits(root: Path, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "validation", "test")):
        rows = [
            {"image": {"bytes": image_bytes(seed), "path": None}, "question": f"what is {number}?", "answer": answer}
            for number, answer in enumerate(["nucleus", "no", "cells"])
        ]
        write_parquet(root / "data" / f"{split}-00000-of-00003.parquet", rows)
    counts = run(root, tmp_path / "out", "pathvqa").funnel.splits
    assert {split: (count.read, count.kept) for split, count in counts.items()} == {
        "test": (3, 2),
        "train": (3, 2),
        "validation": (3, 2),
    }


def test_pmc_vqa_gold_is_the_answers_text(root: Path, tmp_path: Path) -> None:
    rows = [
        {
            "Figure_path": f"PMC{number}_F1.jpg",
            "Question": "What is the uptake pattern, in the breast?",
            "Answer": answer,
            "Choice A": "A:Diffuse",
            "Choice B": " B:Focal uptake pattern ",
            "Choice C": "C:None",
            "Choice D": "D:Unknown",
            "Answer_label": "B",
        }
        for number, answer in enumerate(["Focal uptake pattern", "B:Focal uptake pattern", "B"])
    ]
    write_csv(root / "test_clean.csv", rows)
    write_csv(root / "test.csv", rows)  # not the cleaned test: never read
    write_zip(root / "images.zip", {f"images/PMC{number}_F1.jpg": image_bytes(number, "JPEG") for number in range(3)})
    run(root, tmp_path / "out", "pmc_vqa")
    assert [answer for _, _, answer in questions(tmp_path / "out", "test")] == ["Focal uptake pattern"] * 3
    assert sorted(row["image"] for row in rows_of(tmp_path / "out", "test"))[0] == "images/PMC0_F1.jpg"
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_pmc_vqa_answers_that_are_no_choice() -> None:
    assert answer_text({"Anwser": "C", "Choice C": "C: None"}) == "None"
    assert answer_text({"Answer": "C", "Choice C": ""}) is None
    assert answer_text({"Answer": "A:"}) is None
    assert answer_text({"Question": "?"}) is None


@pytest.mark.parametrize("as_json", [True, False])
def test_vqa_med_keeps_questions_with_one_reference_answer(root: Path, tmp_path: Path, as_json: bool) -> None:
    asked = {"synpic1": "what abnormality is seen in the image?", "synpic2": "what is wrong?", "synpic3": "what is it?"}
    if as_json:
        entries = [{"question": question, "question_id": key} for key, question in asked.items()]
        facts = {"info": "", "task_type": "vqa_imageclef_2021", "questions": entries}
        write_json(root / "Task1-VQAnswering2021-Test-ReferenceQuestions_mscoco_format_vqa.json", facts)
    else:
        lines = [f"{key}|{question}" for key, question in asked.items()]
        (root / "Task1-VQA-2021-TestSet-Questions.txt").write_text("\n".join(lines))
    (root / "Task1-VQAnswering2021-Test-ReferenceAnswers-4Evaluator.txt").write_text(
        "synpic1|acl injury\nsynpic2|empyema|Pleural effusion\nsynpic3|lipoma\n"
    )
    write_zip(root / "Task1.zip", {f"VQA-500-Images/synpic{n}.jpg": image_bytes(n, "JPEG") for n in (1, 2, 3)})
    prepared = run(root, tmp_path / "out", "vqa_med_2021")
    image = "images/VQA-500-Images/synpic1.jpg"
    assert questions(tmp_path / "out", "test")[0] == (image, asked["synpic1"], "acl injury")
    assert [row["id"] for row in rows_of(tmp_path / "out", "test")] == [
        "vqa_med_2021-test-synpic1",
        "vqa_med_2021-test-synpic3",
    ]
    assert prepared.funnel.splits["test"].left_out == {"more than one reference answer": 1}


def write_vqa_med(root: Path, answers: dict[str, str]) -> None:
    """One question and these files of reference answers; those named zip/… lie in the archive of images."""
    (root / "Task1-VQAnswering2021-Test-Questions.txt").write_text("synpic1|what is it?\n")
    members = {"images/synpic1.jpg": image_bytes(1, "JPEG")}
    for name, text in answers.items():
        if name.startswith("zip/"):
            members[name] = text.encode()
        else:
            (root / name).write_text(text)
    write_zip(root / "Task1.zip", members)


@pytest.mark.parametrize(
    ("own", "in_the_archive", "expected"),
    [
        ("Answers-4Evaluator.txt", "synpic1|acl  tear", "ACL injury"),  # differs: the evaluator's is taken
        ("zz-Answers.txt", "synpic1 | acl  injury", "acl injury"),  # the same but for case and white space
    ],
)
def test_vqa_med_with_reference_answers_of_its_own_in_the_archive(
    root: Path, tmp_path: Path, own: str, in_the_archive: str, expected: str
) -> None:
    write_vqa_med(root, {own: "synpic1|ACL injury\n", "zip/ReferenceAnswers.txt": in_the_archive})
    run(root, tmp_path / "out", "vqa_med_2021")
    assert [row["answer"] for row in rows_of(tmp_path / "out", "test")] == [expected]


def test_vqa_med_reference_answers_that_disagree_are_refused(root: Path, tmp_path: Path) -> None:
    write_vqa_med(root, {"Answers.txt": "synpic1|acl injury", "zip/ReferenceAnswers.txt": "synpic1|lipoma"})
    with pytest.raises(DataError, match=r"holds Answers\.txt and .*ReferenceAnswers\.txt .*; leave only the one"):
        run(root, tmp_path / "out", "vqa_med_2021")


@pytest.mark.parametrize("folder", ["", "data", "pathvqa/data", "zz/aa"])
def test_ids_do_not_depend_on_where_parquet_files_lie(root: Path, tmp_path: Path, folder: str) -> None:
    def rows(seed: int) -> list[dict[str, Any]]:
        return [
            {"image": {"bytes": image_bytes(seed), "path": None}, "question": f"what {n}?", "answer": answer}
            for n, answer in enumerate(["no", "cells"])
        ]

    write_parquet(root / folder / "test-00001-of-00002.parquet", rows(2))
    write_parquet(root / "mm" / "test-00000-of-00002.parquet", rows(1))
    run(root, tmp_path / "out", "pathvqa")
    assert [row["id"] for row in rows_of(tmp_path / "out", "test")] == ["pathvqa-test-2", "pathvqa-test-4"]
    assert (tmp_path / "out" / rows_of(tmp_path / "out", "test")[0]["image"]).read_bytes() == image_bytes(1)


def test_a_parquet_file_that_lies_there_twice_is_refused(root: Path, tmp_path: Path) -> None:
    rows = [{"image": {"bytes": image_bytes(1), "path": None}, "question": "what?", "answer": "cells"}]
    for folder in ("data", "backup"):
        write_parquet(root / folder / "test-0.parquet", rows)
    with pytest.raises(DataError, match=r"holds backup/test-0\.parquet and data/test-0\.parquet; leave only the one"):
        run(root, tmp_path / "out", "pathvqa")


@pytest.mark.parametrize("folder", ["", "a/b", "z"])
def test_ids_do_not_depend_on_where_published_files_lie(root: Path, tmp_path: Path, folder: str) -> None:
    write_image(root / "x.png", 1)
    rows = [{"image": "x.png", "problem": f"Which {name}?", "solution": "this"} for name in ("b1", "b2", "a1")]
    write_json(root / folder / "b.json", rows[:2])
    write_json(root / "mm" / "a.json", rows[2:])
    run(root, tmp_path / "out", "published")
    assert [(row["id"], row["question"]) for row in rows_of(tmp_path / "out", "train")] == [
        ("published-train-1", "Which a1?"),
        ("published-train-2", "Which b1?"),
        ("published-train-3", "Which b2?"),
    ]


def test_quilt_vqa_keeps_open_rows_whatever_the_split_is_called(root: Path, tmp_path: Path) -> None:
    rows = [
        {
            "image": {"bytes": image_bytes(number), "path": f"{number}.png"},
            "question": "Which cells?",
            "answer": "Plasma cells.",
            "answer_type": mark,
            "context": "a caption",
        }
        for number, mark in enumerate(["OPEN", "CLOSED", "OPEN"])
    ]
    write_parquet(root / "data" / "train-00000-of-00001.parquet", rows)
    prepared = run(root, tmp_path / "out", "quilt_vqa")
    assert [row["id"].rsplit("-", 1)[1] for row in rows_of(tmp_path / "out", "test")] == ["1", "3"]
    assert prepared.funnel.splits["test"].left_out == {"not an open question": 1}
    assert prepared.manifest["external_judge_allowed"] is False


def test_radimagenet_vqa_keeps_open_questions_and_may_be_narrowed(root: Path, tmp_path: Path) -> None:
    rows = [
        {
            "image": {"bytes": image_bytes(number), "path": None},
            "question": "Which region?",
            "answer": "abdomen",
            "question_type": kind,
            "metadata": {"content_type": content, "modality": "CT"},
        }
        for number, (kind, content) in enumerate([("open", "anatomy"), ("mc", "anatomy"), ("open", "pathology")])
    ]
    write_parquet(root / "benchmark" / "test-00000-of-00001.parquet", rows)
    run(root, tmp_path / "out", "radimagenet_vqa")
    assert len(rows_of(tmp_path / "out", "test")) == 2
    run(root, tmp_path / "narrow", "radimagenet_vqa", where={"content_type": "pathology"})
    assert len(rows_of(tmp_path / "narrow", "test")) == 1


def test_mimic_cxr_vqa_subset_is_a_parameter(root: Path, tmp_path: Path) -> None:
    path = "p10/p10000032/s50414267/02aa804e.jpg"

    def row(idx: int, semantic: str, answer: object) -> dict[str, Any]:
        fields = {"split": "test", "idx": idx, "image_id": "02aa804e", "image_path": path, "question": "What is seen?"}
        return {
            **fields,
            "semantic_type": semantic,
            "content_type": "attribute",
            "template_arguments": {},
            "answer": answer,
        }

    rows = [
        row(1, "query", ["pneumonia", "edema"]),
        row(2, "query", []),
        row(3, "verify", ["yes"]),
        row(4, "choose", ["left"]),
    ]
    write_json(root / "dataset" / "test.json", rows)
    write_image(root / "files" / path, 1)
    prepared = run(root, tmp_path / "out", "mimic_cxr_vqa", where={"semantic_type": "query"})
    assert [answer for _, _, answer in questions(tmp_path / "out", "test")] == ["pneumonia, edema"]
    left_out = {"the answer is an empty list": 1, "semantic_type is not query": 2}
    assert prepared.funnel.splits["test"].left_out == left_out
    assert len(rows_of(run(root, tmp_path / "all", "mimic_cxr_vqa").out, "test")) == 2


def test_published_files(root: Path, tmp_path: Path) -> None:
    rows = [
        {
            "image": ["pics/a.png"],
            "problem": "<image>Which side?",
            "solution": "<think>It is dark.\nSo left.</think> <answer> left </answer>",
        },
        {"image": "pics/b.png", "problem": "Which organ?", "solution": "lung"},
    ]
    write_json(root / "mrpo_13k.json", rows)
    for seed, name in enumerate("ab"):
        write_image(root / "pics" / f"{name}.png", seed)
    run(root, tmp_path / "out", "published")
    one, two = rows_of(tmp_path / "out", "train")
    assert (one["question"], one["answer"], one["rationale"]) == ("Which side?", "left", "It is dark. So left.")
    assert (two["question"], two["answer"], two["rationale"]) == ("Which organ?", "lung", None)


def test_published_jsonl_names_the_bad_line(root: Path, tmp_path: Path) -> None:
    write_image(root / "a.png", 1)
    good = '{"image": "a.png", "problem": "Which?", "solution": "this"}\n'
    (root / "test.jsonl").write_text(good + '{"image": "a.png", "problem"\n' + good)
    with pytest.raises(DataError, match=r"test\.jsonl, row 2: not JSON in UTF-8"):
        run(root, tmp_path / "out", "published")
    assert len(rows_of(run(root, tmp_path / "out", "published", max_bad_rows=1).out, "test")) == 2


@pytest.mark.parametrize(
    ("solution", "own", "expected"),
    [
        ("<think>a b</think><answer>c</answer>", "", ("c", "a b")),
        ("<answer>c</answer>", "", ("c", None)),
        ("<answer>x</answer><think>a</think><answer>c</answer>", "", ("c", "a")),
        ("c", "", ("c", None)),
        ("<think>a</think> c", "", ("c", "a")),
        ("because a", "c", ("c", "because a")),
        ("<think>a</think><answer>c</answer>", "d", ("d", "a")),
    ],
)
def test_parts_of_a_solution(solution: str, own: str, expected: tuple[str, str | None]) -> None:
    assert parts_of(solution, own) == expected


# Every set


@pytest.mark.parametrize("name", list(SETS))
def test_an_empty_folder_says_what_belongs_there(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{root} holds n"):
        run(root, tmp_path / "out", name)


def test_a_set_without_marks_cannot_be_filtered_by_them(root: Path, tmp_path: Path) -> None:
    write_image(root / "a.png", 1)
    write_json(root / "test.json", [{"image": "a.png", "problem": "Which?", "solution": "this"}])
    with pytest.raises(DataError, match=r"test\.json, row 1: not marked as open or closed"):
        run(root, tmp_path / "out", "published", open_rule=OpenRule.OPEN)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00003.parquet", "train"),
        ("validate.json", "validation"),
        ("R-RAD/open-end/testset.json", "test"),
        ("R-PathVQA/open-end/valset.json", "validation"),
        ("test/rows.parquet", "test"),
        ("latest/rows.parquet", None),
    ],
)
def test_the_split_is_a_whole_word_of_the_path(path: str, split: str | None) -> None:
    assert split_of(SourceFile(path=path, file=Path(path))) == split
