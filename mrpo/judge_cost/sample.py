"""Rows of a run's data to measure calls by, without opening more than a few images."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mrpo.choices import DataKind
from mrpo.config import Config
from mrpo.data.checks import RowChecks, require_folder
from mrpo.data.jsonl import read_jsonl
from mrpo.data.phantom import ensure_phantom
from mrpo.data.vqa_rad import read_vqa_rad
from mrpo.types import Example

NUM_ROWS = 64  # measured, spread over the file
NUM_IMAGES = 16  # whose size is looked at
ALL = 10**9  # bad rows: whoever trains is told of them
TYPICAL_TEST = 500  # questions of an evaluation, where nobody knows
TYPICAL_SIZE = (896, 896)  # pixels; 802,816, the most that the published recipes look at
TYPICAL = Example(
    id="typical",
    image="",
    question="Which abnormality is seen in the right lower lung field of this chest radiograph?",
    answer="pleural effusion",
    rationale=(
        "The image is a frontal chest radiograph in an upright adult patient. The lung fields, the heart and both "
        "hemidiaphragms are included in the view. The left costophrenic angle is sharp and the left lung is clear. On "
        "the right side there is a homogeneous opacity at the base that blunts the costophrenic angle. Its upper "
        "border is curved and rises towards the lateral chest wall, which is typical of free fluid. The most likely "
        "diagnosis is therefore a right-sided pleural effusion."
    ),
    dataset="assumed",
    split="train",
    license="none",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What calls are measured by."""

    rows: list[Example]  # training questions
    rationale_share: float  # of all training questions
    num_test: int  # held-out questions of a whole evaluation
    test_rationale_share: float
    image_size: tuple[int, int]  # pixels, width and height: of the mean area
    source: str  # in words


class _Unopened(RowChecks):
    """Takes rows by their text: images are looked at when a run starts."""

    def image_fault(self, path: Path) -> str | None:
        return None


def sample_rows(config: Config, *, data_is_known: bool) -> Sample:
    """Rows of the run's own data, or an assumed one where it is not said where that is.

    Raises:
        DataError: the data cannot be read.
    """
    data = config.data
    if data.kind == DataKind.PHANTOM:
        with tempfile.TemporaryDirectory() as folder:
            root = ensure_phantom(Path(folder), counts={"train": NUM_ROWS}, seed=data.seed, noise=data.noise)
            rows = read_jsonl(root / "train.jsonl", root=root, checks=_Unopened(max_bad_rows=0))
            size = _mean_size(rows)
        return Sample(
            rows=rows,
            rationale_share=1.0,
            num_test=data.num_test or TYPICAL_TEST,
            test_rationale_share=1.0,
            image_size=size,
            source=f"{len(rows)} phantoms",
        )
    if not data_is_known:
        return Sample(
            rows=[TYPICAL],
            rationale_share=1.0,
            num_test=data.num_test or TYPICAL_TEST,
            test_rationale_share=1.0,
            image_size=TYPICAL_SIZE,
            source="ASSUMED: one row of a usual size, for data.root is not set",
        )
    train, test = (rows[:most] for rows, most in zip(_read(config), (data.num_train, data.num_test), strict=True))
    rows = train[:: max(1, len(train) // NUM_ROWS)][:NUM_ROWS]
    return Sample(
        rows=rows,
        rationale_share=_rationale_share(train),
        num_test=len(test),
        test_rationale_share=_rationale_share(test),
        image_size=_mean_size(rows),
        source=f"{len(rows)} of {len(train):,} rows of {data.root}",
    )


def _read(config: Config) -> tuple[list[Example], list[Example]]:
    data, checks = config.data, _Unopened(max_bad_rows=ALL)
    root = require_folder(data.root, "data.root")
    if data.kind == DataKind.VQA_RAD:
        return read_vqa_rad(root, "train", checks=checks), read_vqa_rad(root, "test", checks=checks)
    files = (root / data.train_file, root / data.test_file)
    train, test = (read_jsonl(file, root=root, checks=checks) for file in files)
    return train, test


def _rationale_share(rows: list[Example]) -> float:
    return sum(row.rationale is not None for row in rows) / len(rows) if rows else 0.0


def _mean_size(rows: list[Example]) -> tuple[int, int]:
    """A square of the mean area; images that cannot be read are passed over."""
    areas = []
    for row in rows[:: max(1, len(rows) // NUM_IMAGES)][:NUM_IMAGES]:
        try:
            with Image.open(row.image) as image:
                areas.append(image.width * image.height)
        except OSError:
            continue
    side = round((sum(areas) / len(areas)) ** 0.5) if areas else TYPICAL_SIZE[0]
    return side, side
