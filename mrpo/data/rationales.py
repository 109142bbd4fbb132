"""MedThink's gold rationales, joined to questions by image, question and answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mrpo.data.checks import clean_text
from mrpo.data.image_store import MAX_IMAGE_BYTES
from mrpo.data.layouts.splits import split_of
from mrpo.data.records import json_records
from mrpo.data.rows import InlineImage, SourceRow, shown, texts_of
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

FOLDER = "open-end"  # beside close-end, which has the yes/no questions

# Size and sha256 of the published files that are known.
PUBLISHED = {
    "R-RAD/open-end/trainset.json": (1_244_889, "33b9f26e98b3c609480a488b8365aeb7c4155b60b47effff0f521c7ce592c488"),
    "R-RAD/open-end/testset.json": (175_286, "3ba3daf992698d8c59a98f974853a9e89a0e9e1a559c43975038080e48910baa"),
    "R-SLAKE/open-end/train.json": (3_243_870, "dc2caf8c8800170251e2fedbb3fe32108e81bc1d522e90b67a27e8b637311603"),
    "R-SLAKE/open-end/test.json": (705_462, "ae42cd1983a45e0cdc4cc4353fe32bafce4d6743926ca46de8bfa76e3810b7f8"),
    "R-PathVQA/open-end/trainset.json": (
        9_068_749,
        "824f92f9b5f85c67fd9f74bf8159142a6ba592fd4cc15983850b598aebd046e9",
    ),
}

# Files of MedThink whose digest is not known here, so that a download leaves them out.
WITHOUT_DIGEST = {"R-PathVQA": ("valset.json", "testset.json")}

Key = tuple[str, str, str]  # image, question, answer


@dataclass(slots=True)
class SplitRationales:
    """Rationales of one split."""

    by_key: dict[Key, int] = field(default_factory=dict)  # to the place in texts
    texts: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)  # places in texts
    read: int = 0
    bad: int = 0
    repeated: int = 0  # the triple had a rationale already; the first one stays
    asked: int = 0  # questions that looked for one
    joined: int = 0  # questions that found theirs
    image: str = ""  # one that a rationale names, for messages

    @property
    def without_question(self) -> int:
        """Rationales that no question of the set asked for."""
        return len(self.texts) - len(self.used)


@dataclass(slots=True)
class Rationales:
    """The rationales of a set, by split."""

    splits: dict[str, SplitRationales] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)
    faults: list[tuple[str, int, str]] = field(default_factory=list)  # file, row, what is wrong

    def find(self, row: SourceRow) -> str | None:
        """The rationale of a question of the same split."""
        rationales = self.splits.get(row.split)
        if rationales is None:
            return None
        rationales.asked += 1
        for image in image_keys(row.image):
            key = (image, normalise(row.question), normalise(row.answer))
            if key in rationales.by_key:
                place = rationales.by_key[key]
                rationales.used.add(place)
                rationales.joined += 1
                return rationales.texts[place]
        return None

    def require_joined(self, place: str) -> None:
        """Refuse a split whose rationales all failed to find a question; `place` says where the images belong.

        Raises:
            DataError: none was joined although there are both rationales and questions.
        """
        for split, counts in sorted(self.splits.items()):
            if counts.asked and counts.texts and not counts.joined:
                raise DataError(
                    f"none of {counts.asked} {split} questions found its gold rationale among {len(counts.texts)}, "
                    f"which are joined by image, question and answer; they name images such as {counts.image!r}: where "
                    f"the set's rows have no such names (parquet), put image files of those names below {place}, else "
                    f"see that data.rationales is of this set; or take its {split} file away"
                )


def read_rationales(tree: SourceTree, folder: str, images: SourceTree) -> Rationales:
    """All rationales of `folder` (such as "R-RAD") below `tree`, or of the tree itself where it has no such folder.

    Images whose files are in either tree are also known by the MD5 of their bytes, by which parquet rows are found.

    Raises:
        DataError: no file there, or one that cannot be read.
    """
    everything = [file for file in tree.files() if file.name.lower().endswith(".json")]
    own = [file for file in everything if {folder, FOLDER} <= set(PurePosixPath(file.path).parts)]
    if not own:
        own = [file for file in everything if len(PurePosixPath(file.path).parts) == 1]
    rationales = Rationales(files=own)
    for file in own:
        split = split_of(file)
        if split is None:
            raise DataError(f"{tree.root / file.label}: expected train, val or test in the file's name")
        counts = rationales.splits.setdefault(split, SplitRationales())
        for number, record in json_records(tree, file):
            counts.read += 1
            parsed = _parse(record)
            if isinstance(parsed, str):
                counts.bad += 1
                rationales.faults.append((file.label, number, parsed))
                continue
            image, question, answer, text = parsed
            triples = [(key, normalise(question), normalise(answer)) for key in _keys(image, (tree, images))]
            if triples[0] in counts.by_key:
                counts.repeated += 1
                continue
            counts.texts.append(text)
            counts.image = counts.image or image
            for triple in triples:
                counts.by_key.setdefault(triple, len(counts.texts) - 1)
    if not rationales.files:
        raise DataError(
            f"{tree.root} holds no {folder}/{FOLDER}/*.json; set data.rationales=<the root of the MedThink repository>"
        )
    return rationales


def image_key(path: str) -> str:
    """The base name; for SLAKE, `xmlab1/source.jpg` and `xmlab1_source.jpg` are both the latter."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if len(parts) > 1 and re.fullmatch(r"xmlab\d+", parts[-2]):
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1] if parts else ""


def image_keys(image: str | InlineImage) -> list[str]:
    """All keys by which a row's image may be known."""
    if isinstance(image, str):
        return [image_key(image)]
    named = [image_key(image.name)] if image.name else []
    return [_md5_key(image.data), *named]


def normalise(text: str) -> str:
    """Lower case, single spaces, none before `? . , ! ; :`."""
    return re.sub(r"\s+([?.,!;:])", r"\1", " ".join(text.split()).lower())


def _keys(image: str, trees: tuple[SourceTree, ...]) -> Iterator[str]:
    """Keys of an image that a rationale names."""
    yield image_key(image)
    for tree in trees:
        for file in tree.matching(image)[:1]:
            yield _md5_key(tree.read(file, max_bytes=MAX_IMAGE_BYTES))


def _md5_key(data: bytes) -> str:
    return f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def _parse(record: object) -> tuple[str, str, str, str] | str:
    """Image, question, answer and rationale of a record, or what is wrong with it."""
    texts = texts_of(record, ("question", "solution"))
    if isinstance(texts, str):
        return texts
    assert isinstance(record, Mapping)
    image = clean_text(record.get("img_name")) or clean_text(record.get("image"))
    if not image:
        return "neither field 'image' nor 'img_name' names an image"
    answer = _answer(record.get("answer"), record.get("choices"))
    if not answer:
        return f"field 'answer' is no text and no index into 'choices': {shown(record.get('answer'))}"
    return image, texts["question"], answer, texts["solution"]


def _answer(answer: object, choices: object) -> str:
    """The answer in words; an int is an index into the choices."""
    if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(choices, list) and choices:
        return clean_text(choices[answer]) if 0 <= answer < len(choices) else ""
    return clean_text(answer)
