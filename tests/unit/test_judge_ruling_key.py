"""What makes two calls the same call."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from judge.image import data_url
from judge.ruling_key import image_digest, ruling_key
from mrpo.choices import StructuredReply
from mrpo.config import ProviderConfig
from tests.unit.kept_rulings import answer_request, config_of, image_file, steps_request


@pytest.fixture
def image(tmp_path: Path) -> str:
    return image_file(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Which side"},
        {"answer": "Left"},
        {"rationale": "On the  left."},
        {"steps": ["A.", "C."]},
        {"steps": ["B.", "A."]},
        {"steps": ["A.", "B.", "B."]},
        {"steps": ["A.B."]},
    ],
    ids=str,
)
def test_another_word_is_another_call(image: str, change: dict[str, Any]) -> None:
    request = steps_request(image)
    assert ruling_key(request, config_of(), model="m") != ruling_key(replace(request, **change), config_of(), model="m")


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7},
        {"temperature": None},
        {"send_image": False},
        {"provider": ProviderConfig(structured=StructuredReply.JSON_OBJECT)},
        {"provider": ProviderConfig(reasoning_effort="low")},
        {"provider": ProviderConfig(system_role=False)},
    ],
    ids=str,
)
def test_another_way_of_asking_is_another_call(image: str, change: dict[str, Any]) -> None:
    request = steps_request(image)
    assert ruling_key(request, config_of(), model="m") != ruling_key(request, config_of(**change), model="m")


def test_model_rubric_and_kind_of_call_are_told_apart(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request, answer = steps_request(image), answer_request(image)
    keys = {ruling_key(request, config_of(), model="m"), ruling_key(request, config_of(), model="n")}
    keys.add(ruling_key(answer, config_of(), model="m"))
    monkeypatch.setattr("judge.ruling_key.RUBRIC_VERSION", "2")
    keys.add(ruling_key(request, config_of(), model="m"))
    monkeypatch.undo()
    monkeypatch.setattr("judge.prompts.RUBRIC", "a word was changed, and the version forgotten")
    keys.add(ruling_key(request, config_of(), model="m"))
    assert len(keys) == 5


def test_what_decides_about_no_ruling_is_not_in_the_key(image: str) -> None:
    changes: dict[str, Any] = {"max_completion_tokens": 9, "concurrency": 1, "deadline_s": 1.0, "api_key_env": "OTHER"}
    changes["noise"] = 0.5
    request = steps_request(image)
    other = ruling_key(replace(request, key="q#7"), config_of(url="http://x/v1", **changes), model="m")
    assert other == ruling_key(request, config_of(), model="m")


def test_an_image_counts_by_its_content(tmp_path: Path, image: str) -> None:
    copy, other = tmp_path / "copy.png", tmp_path / "other.png"
    copy.write_bytes(Path(image).read_bytes())
    Image.new("L", (8, 8), 91).save(other)
    key = ruling_key(steps_request(image), config_of(), model="m")
    assert ruling_key(steps_request(str(copy)), config_of(), model="m") == key
    assert ruling_key(steps_request(str(other)), config_of(), model="m") != key
    unseen = config_of(send_image=False)
    assert ruling_key(steps_request(image), unseen, model="m") == ruling_key(
        steps_request(str(other)), unseen, model="m"
    )
    before = image_digest(image)
    Image.new("L", (8, 8), 17).save(image)
    os.utime(image, ns=(1, 1))  # as a rewritten file, it has another time
    assert image_digest(image) != before


@pytest.mark.parametrize("replaced", [False, True])
def test_an_image_rewritten_with_its_old_size_and_time_is_read_again(image: str, replaced: bool) -> None:
    before, facts, sent = image_digest(image), os.stat(image), data_url(image)
    data = Path(image).read_bytes()
    time.sleep(0.02)  # file systems count in ticks
    target = Path(image + ".new") if replaced else Path(image)
    target.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(target, image)
    assert (os.stat(image).st_size, os.stat(image).st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert image_digest(image) != before
    assert data_url(image) != sent
