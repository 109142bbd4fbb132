"""Kept rulings whose files are damaged."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judge.accounting import KnownRuling
from judge.cache import RulingCache
from judge.ruling_file import CorruptRuling, decode, encode
from tests.unit.kept_rulings import RULING, config_of, files_of, find, image_file, keep, steps_request


@pytest.fixture
def image(tmp_path: Path) -> str:
    return image_file(tmp_path)


def _resigned(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A file whose checksum is right and whose content is not."""

    def damage(data: bytes) -> bytes:
        payload = json.dumps(change(json.loads(data.split(b"\n")[1]))).encode()
        return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload + b"\n"

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-5],
    "cut in the checksum": lambda data: data[:30],
    "last byte lost": lambda data: data[:-1],
    "a bit flipped": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "zeros": lambda data: bytes(len(data)),
    "not JSON": lambda data: b"rubbish\nrubbish\n",
    "appended": lambda data: data + data,
    "another call's": _resigned(lambda entry: entry | {"key": "0" * 64}),
    "no object": _resigned(lambda entry: [entry]),
    "deep": lambda data: _resigned(lambda entry: entry)(b"\n" + json.dumps("[" * 100).encode() + b"\n"),
    "one mark short": _resigned(lambda entry: entry | {"alignment": "1"}),
    "one mark more": _resigned(lambda entry: entry | {"contribution": "000"}),
    "marks of another kind": _resigned(lambda entry: entry | {"alignment": [True, False]}),
    "a mark of 2": _resigned(lambda entry: entry | {"alignment": "12"}),
    "no marks": _resigned(lambda entry: {key: entry[key] for key in ("key", "model", "rubric")}),
    "an answer's": _resigned(lambda entry: {key: entry[key] for key in ("key", "model")} | {"correct": "1"}),
    "no model": _resigned(lambda entry: entry | {"model": None}),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_file_is_a_miss_that_is_reported_and_replaced(
    tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache = RulingCache(config_of(), tmp_path / "c")
    keep(cache, steps_request(image), RULING)
    (file,) = files_of(tmp_path / "c")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING):
        assert find(cache, steps_request(image)) is None
        assert find(cache, steps_request(image)) is None
    assert cache.counts == {"corrupt": 2, "misses": 2}
    assert len(caplog.records) == 1, "said once"
    assert str(file) in caplog.text
    keep(cache, steps_request(image), RULING)
    assert file.read_bytes() == whole
    assert find(cache, steps_request(image)) is not None


def test_an_answers_file_is_held_to_its_form_too() -> None:
    whole = encode("k", KnownRuling(ruling=True, model="m"), rubric="1")
    assert decode(whole, "k", num_steps=None) == KnownRuling(ruling=True, model="m")
    with pytest.raises(CorruptRuling, match="another call"):
        decode(whole, "l", num_steps=None)
    with pytest.raises(CorruptRuling, match="alignment"):
        decode(whole, "k", num_steps=1)
