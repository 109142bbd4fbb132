"""The phantom data set on disk: drawn once, the same every time, new when anything that decides it changes."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrpo.config import Config, DataConfig, EvalConfig, ModelConfig, RolloutConfig, WarmStartConfig
from mrpo.data import phantom
from mrpo.data.checks import RowChecks
from mrpo.data.jsonl import read_jsonl
from mrpo.data.load import load_dataset
from mrpo.data.phantom import ensure_phantom, phantom_examples
from mrpo.errors import DataError
from mrpo.phantom.language import QuestionKind, read_rationale, write_answer
from mrpo.types import Example

COUNTS = {"warm": 40, "train": 40, "test": 40}


def make(cache: Path, **changes: Any) -> Path:
    settings = {"counts": COUNTS, "seed": 0, "noise": 0.06, **changes}
    return ensure_phantom(cache, **settings)


def read(folder: Path, split: str) -> list[Example]:
    return read_jsonl(folder / f"{split}.jsonl", root=folder, checks=RowChecks(max_bad_rows=0))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path inside the folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cache"))


def test_two_generations_are_the_same_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    again = make(tmp_path)
    assert again.name == folder.name
    assert digests(again) == digests(folder)
    assert len(digests(folder)) == 3 * 40 + 3


def test_what_is_there_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": 2}
    first = make(tmp_path, counts=counts)
    before = {file: file.stat().st_mtime_ns for file in first.rglob("*")}

    def refuse(*_: object, **__: object) -> list[Example]:
        raise AssertionError("drawn again")

    source = phantom.world_fingerprint()
    monkeypatch.setattr(phantom, "world_fingerprint", lambda: source)
    monkeypatch.setattr(phantom, "phantom_examples", refuse)
    assert make(tmp_path, counts=counts) == first
    assert {file: file.stat().st_mtime_ns for file in first.rglob("*")} == before
    with pytest.raises(AssertionError, match="drawn again"):
        make(tmp_path, counts={"train": 3})


def test_the_name_follows_everything_that_decides_the_content(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"noise": 0.05},
        *({"counts": {**COUNTS, split: 41}} for split in COUNTS),
    ]
    names = {make(tmp_path, **change).name for change in changes}
    monkeypatch.setattr(phantom, "world_fingerprint", lambda: "another world")
    names.add(make(tmp_path, counts={"train": 1}).name)
    names.add(folder.name)
    assert len(names) == len(changes) + 2


def test_the_order_of_the_counts_changes_nothing(folder: Path, tmp_path: Path) -> None:
    assert make(tmp_path, counts=dict(reversed(COUNTS.items()))).name == folder.name


def test_no_two_scans_are_the_same_picture(folder: Path) -> None:
    pictures = Counter(Image.open(file).tobytes() for file in (folder / "images").iterdir())
    assert len(pictures) == sum(COUNTS.values()), "also not between the splits"


def test_another_seed_draws_other_pictures(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path, seed=1)
    pictures = {path: Image.open(path).tobytes() for path in (folder / "images").iterdir()}
    assert set(pictures.values()).isdisjoint(Image.open(path).tobytes() for path in (other / "images").iterdir())


def test_more_scans_begin_with_the_same_ones(folder: Path, tmp_path: Path) -> None:
    longer = make(tmp_path, counts={"train": 45})
    assert [(e.id, e.question, e.rationale) for e in read(longer, "train")][:40] == [
        (e.id, e.question, e.rationale) for e in read(folder, "train")
    ]
    assert digests(longer)["images/train-00039.png"] == digests(folder)["images/train-00039.png"]


def test_rows_read_back_as_what_was_drawn(folder: Path, tmp_path: Path) -> None:
    drawn = phantom_examples("test", COUNTS["test"], seed=0, noise=0.06, images=tmp_path)
    for read_back, example in zip(read(folder, "test"), drawn, strict=True):
        assert read_back.image == str(folder / "images" / Path(example.image).name)
        assert Path(read_back.image).read_bytes() == Path(example.image).read_bytes()
        for name in ("id", "question", "answer", "rationale", "dataset", "split", "license"):
            assert getattr(read_back, name) == getattr(example, name)


def test_every_answer_follows_from_its_rationale(folder: Path) -> None:
    kinds: Counter[QuestionKind] = Counter()
    for split in COUNTS:
        for example in read(folder, split):
            assert example.rationale is not None
            kind = QuestionKind(example.question)
            kinds[kind] += 1
            assert example.answer == write_answer(kind, read_rationale(example.rationale))
            assert (example.dataset, example.split) == ("phantom", split)
    assert set(kinds) == set(QuestionKind), "every kind is asked"
    assert min(kinds.values()) >= 5


def test_noise_is_in_the_pictures(tmp_path: Path) -> None:
    """The same scene with and without noise differs by about the configured share of full scale."""
    clear, noisy = (
        np.asarray(Image.open(make(tmp_path, counts={"train": 1}, noise=noise) / "images" / "train-00000.png"))
        for noise in (0.0, 0.1)
    )
    difference = np.abs(clear.astype(float) - noisy.astype(float)).mean() / 255.0
    assert 0.02 < difference < 0.12  # a normal deviate's mean size is 0.8 of 0.1, less where it is clipped


def load_config(cache: Path, **data: Any) -> Config:
    return Config(
        cache_dir=str(cache),
        model=ModelConfig(warm_start=WarmStartConfig(num_scans=5)),
        data=DataConfig(**{"num_train": 8, "num_test": 3, **data}),
        rollout=RolloutConfig(prompts_per_step=8),
        eval=EvalConfig(),
    )


def test_a_runs_splits_have_the_configured_sizes(tmp_path: Path) -> None:
    dataset = load_dataset(load_config(tmp_path))
    assert (len(dataset.train), len(dataset.test), len(dataset.warm)) == (8, 3, 5)
    assert {Path(example.image).parents[2] for example in dataset.train} == {tmp_path}


@pytest.mark.parametrize("name", ["num_train", "num_test"])
def test_phantoms_need_a_number(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"data.{name}=null: phantoms are generated, so say how many"):
        load_dataset(load_config(tmp_path, **{name: None}))
