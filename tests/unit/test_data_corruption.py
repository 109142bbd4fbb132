"""Two hundred damaged sets: each is read, or refused with the file's name; no traceback, no half-made folder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrpo.errors import UserError
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

WRONG = (None, True, -1, 10**400, 1.5, "", " ", "x" * 5000, [], {}, ["a"], {"a": {"b": []}}, "../../x.jpg", "\0")


def make_json_set(root: Path) -> Path:
    rows = [
        {"qid": number, "image_name": "a.png", "question": f"Which {number}?", "answer": "lung", "answer_type": "OPEN"}
        for number in range(6)
    ]
    write_json(root / "train.json", rows)
    write_json(root / "test.json", [{**row, "qid": f"t{row['qid']}"} for row in rows[:2]])
    write_image(root / "images" / "a.png", 1)
    return root / "train.json"


def make_parquet_set(root: Path) -> Path:
    rows = [
        {"image": {"bytes": image_bytes(number), "path": None}, "question": "what?", "answer": f"cell {number}"}
        for number in range(6)
    ]
    write_parquet(root / "train-0.parquet", rows)
    write_parquet(root / "test-0.parquet", rows[:1])
    return root / "train-0.parquet"


def make_zip_set(root: Path) -> Path:
    write_slake(root)
    write_json(root / "train.json", [slake_row(number, "xmlab1/source.jpg") for number in range(4)])
    return root / "imgs.zip"


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def swap_bytes(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64))):
        one, two = chance.randrange(len(data)), chance.randrange(len(data))
        damaged[one], damaged[two] = damaged[two], damaged[one]
    return bytes(damaged)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    junk = chance.choice((b"\xff" * 40, bytes(40), chance.randbytes(40), b"version https://git-lfs", b"\xed\xa0\x80"))
    return data[:start] + junk + data[start + chance.choice((0, len(junk))) :]


def repeat(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start // 2 :]


def wrong_value(data: bytes, chance: random.Random) -> bytes:
    rows: list[Any] = json.loads(data)
    row = chance.choice(rows)
    row[chance.choice(list(row))] = chance.choice(WRONG)
    return json.dumps(rows).encode()


def missing_key(data: bytes, chance: random.Random) -> bytes:
    rows: list[Any] = json.loads(data)
    row = chance.choice(rows)
    del row[chance.choice(list(row))]
    return json.dumps(rows).encode()


def wrong_shape(data: bytes, chance: random.Random) -> bytes:
    rows: list[Any] = json.loads(data)
    rows[chance.randrange(len(rows))] = chance.choice(WRONG)
    whole = chance.choice((rows, rows[0], {"rows": rows}, dict(enumerate(rows)), rows * 2, 7))
    return json.dumps(whole, ensure_ascii=chance.random() < 0.5).encode()


BYTES = (truncate, swap_bytes, overwrite, repeat)
MUTATIONS: dict[str, tuple[str, Callable[[Path], Path], tuple[Callable[[bytes, random.Random], bytes], ...], int]] = {
    "json": ("vqa_rad", make_json_set, (*BYTES, wrong_value, missing_key, wrong_shape), 84),
    "parquet": ("pathvqa", make_parquet_set, BYTES, 60),
    "zip": ("slake", make_zip_set, BYTES, 60),
}


@pytest.mark.parametrize("kind", list(MUTATIONS))
def test_damaged_input_is_read_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    name, make, mutations, count = MUTATIONS[kind]
    root = tmp_path / "source"
    victim = make(root)
    whole = victim.read_bytes()
    expected = {split: run(root, tmp_path / "whole", name).funnel.splits[split].read for split in ("train", "test")}
    outcomes = {"read": 0, "refused": 0}
    for seed in range(count):
        chance = random.Random(seed)
        mutation = mutations[seed % len(mutations)]
        victim.write_bytes(mutation(whole, chance))
        out = tmp_path / "out"
        try:
            prepared = run(root, out, name, max_bad_rows=seed % 3)
        except UserError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 1000, message
            assert str(root) in message and victim.name in message, (mutation, seed, message)
            assert not out.exists(), (mutation, seed)
            outcomes["refused"] += 1
        else:
            assert len(prepared.manifest["bad_rows"]) <= seed % 3
            assert prepared.funnel.splits["test"].read == expected["test"]
            assert all((out / row["image"]).is_file() for row in rows_of(out, "train"))
            shutil.rmtree(out)
            outcomes["read"] += 1
        assert sorted(item.name for item in tmp_path.iterdir()) == ["source", "whole"], (mutation, seed)
    assert outcomes["refused"] > count / 3 and outcomes["read"] > 0, outcomes


def test_two_hundred_is_kept() -> None:
    assert sum(count for *_, count in MUTATIONS.values()) >= 200
