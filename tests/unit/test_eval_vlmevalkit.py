"""The TSV file, read back as VLMEvalKit reads it."""

from __future__ import annotations

import base64
import io
import tracemalloc
from pathlib import Path

import pandas
import pytest
from pandas._libs.parsers import STR_NA_VALUES
from PIL import Image

from mrpo.errors import DataError
from mrpo.eval.vlmevalkit import READ_AS_MISSING, TsvCounts, write_vlmevalkit_tsv
from mrpo.types import Example


def example(number: int, image: Path, *, question: str = "What is it?", answer: str = "a liver") -> Example:
    """Question `number` about an image."""
    return Example(
        id=f"q{number}",
        image=str(image),
        question=question,
        answer=answer,
        rationale=None,
        dataset="vqa_rad",
        split="test",
        license="CC0-1.0",
    )


def picture(path: Path, shade: int) -> Path:
    """A small image of one colour."""
    Image.new("RGB", (12, 9), (shade, 0, 0)).save(path)
    return path


def load(path: Path) -> dict[int, dict[str, str]]:
    """Rows by index, images looked up where a cell names the row that holds them: the rule of `ImageBaseDataset`."""
    data = pandas.read_csv(path, sep="\t")
    assert list(data.columns) == ["index", "id", "image", "question", "answer"]
    images = {str(index): str(image) for index, image in zip(data["index"], data["image"], strict=True)}
    rows = {}
    for record in data.to_dict("records"):
        image = images[str(record["index"])]
        if len(image) <= 64:
            image = images[image]
            assert len(image) > 64
        rows[int(record["index"])] = {**record, "image": image}
    return rows


def test_round_trip(tmp_path: Path) -> None:
    red, dark = picture(tmp_path / "red.png", 255), picture(tmp_path / "dark.jpg", 40)
    examples = [
        example(0, red, question='Where\tis "it",\nor which?', answer="2"),
        example(1, dark, answer="左肺 | 1/2"),
        example(2, red, answer="None"),
        example(3, red, answer="none"),
    ]
    path = tmp_path / "out" / "VQA_RAD.tsv"
    counts = write_vlmevalkit_tsv(path, iter(examples))
    assert counts == TsvCounts(num_questions=4, num_images=2, num_guarded=1)
    rows = load(path)
    assert [row["id"] for row in rows.values()] == ["q0", "q1", "q2", "q3"]
    assert [row["question"] for row in rows.values()] == [item.question for item in examples]
    assert [str(row["answer"]).strip() for row in rows.values()] == ["2", "左肺 | 1/2", "None", "none"]
    for row, source in zip(rows.values(), (red, dark, red, red), strict=True):
        assert base64.b64decode(row["image"]) == source.read_bytes()
        assert Image.open(io.BytesIO(base64.b64decode(row["image"]))).size == (12, 9)


def test_the_guard_is_pandas_own_list() -> None:
    assert READ_AS_MISSING == STR_NA_VALUES


@pytest.mark.parametrize("content", [None, b"", b"GIF89a"])
def test_an_image_that_is_none_leaves_no_file(tmp_path: Path, content: bytes | None) -> None:
    image = tmp_path / "lost.png"
    if content is not None:
        image.write_bytes(content)
    good = picture(tmp_path / "good.png", 9)
    with pytest.raises(DataError, match=r"question q1: .*lost\.png"):
        write_vlmevalkit_tsv(tmp_path / "set.tsv", [example(0, good), example(1, image)])
    with pytest.raises(DataError, match="no question to write"):
        write_vlmevalkit_tsv(tmp_path / "set.tsv", [])
    assert not [file for file in tmp_path.iterdir() if "tsv" in file.name]


def test_images_are_not_all_in_memory(tmp_path: Path) -> None:
    size = 200_000
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]) * size)

    def peak(num: int) -> int:
        tracemalloc.start()
        write_vlmevalkit_tsv(tmp_path / "set.tsv", (example(n, tmp_path / f"{n}.png") for n in range(num)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < peak(4) + size
