"""Small sets in the layouts that the real ones are published in, for tests."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from mrpo.data.prepare import Prepared, prepare
from mrpo.data.sets import SetSpec
from mrpo.data.settings import PrepareConfig


class NoDownloads:
    """A given folder is never fetched."""

    def fetch_set(self, spec: SetSpec) -> Path:
        raise AssertionError(spec.name)

    fetch_rationales = fetch_set


def run(source: Path, out: Path, name: str = "vqa_rad", **settings: Any) -> Prepared:
    """Prepare a set that lies here."""
    config = PrepareConfig(set=name, source=str(source), out=str(out), **settings)
    return prepare(config, downloads=NoDownloads())


def rows_of(out: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a prepared split."""
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def noise(seed: int, side: int = 48) -> Image.Image:
    """A picture unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def image_bytes(seed: int, kind: str = "PNG") -> bytes:
    """That picture as a file."""
    out = io.BytesIO()
    noise(seed).save(out, kind)
    return out.getvalue()


def write_json(file: Path, value: object) -> None:
    """A JSON file, folders included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_image(file: Path, seed: int) -> None:
    """A PNG file, folders included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image_bytes(seed))


def write_zip(file: Path, members: Mapping[str, bytes]) -> None:
    """A zip archive."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]], *, row_group_size: int = 4) -> None:
    """A parquet file of rows {image: {bytes, path}, question, …}."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    pyarrow.parquet.write_table(table, file, row_group_size=row_group_size)


def write_csv(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A CSV file with a header."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def slake_row(qid: int, image: str, **changes: Any) -> dict[str, Any]:
    """A record as SLAKE has it."""
    return {
        "img_id": qid,
        "img_name": image,
        "question": "Which organ is abnormal ?",
        "answer": "Lung",
        "q_lang": "en",
        "location": "Lung",
        "modality": "X-Ray",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **changes,
    }


def write_slake(root: Path, *, zipped: bool = True) -> None:
    """Three splits, three images, one question in Chinese."""
    write_json(root / "train.json", [slake_row(1, "xmlab1/source.jpg"), slake_row(2, "xmlab1/source.jpg", q_lang="zh")])
    write_json(root / "validate.json", [slake_row(3, "xmlab2/source.jpg")])
    write_json(root / "test.json", [slake_row(4, "xmlab3/source.jpg", answer="No", answer_type="CLOSED")] * 1)
    images = {f"imgs/xmlab{seed}/source.jpg": image_bytes(seed, "JPEG") for seed in (1, 2, 3)}
    if zipped:
        write_zip(root / "imgs.zip", images)
        return
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
