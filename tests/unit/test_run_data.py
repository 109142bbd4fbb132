"""A resumed run has the rows it began with, or ends before anything starts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mrpo.sft.__main__
import mrpo.train
from mrpo.choices import DataKind
from mrpo.config import Config, DataConfig, ModelConfig, RolloutConfig
from mrpo.data.load import Dataset, load_dataset
from mrpo.data.run_data import FILE, note_data, require_same_data
from mrpo.errors import DataError, ResourceError
from tests.unit.test_train_errors import jsonl_folder


def dataset_in(root: Path) -> Dataset:
    data = DataConfig(kind=DataKind.JSONL, root=str(root))
    return load_dataset(Config(data=data, model=ModelConfig(path="any"), rollout=RolloutConfig(prompts_per_step=4)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return jsonl_folder(folder)


@pytest.fixture
def run(tmp_path: Path, root: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    note_data(folder, dataset_in(root))
    return folder


def change_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Dataset], Dataset]:
    def changed(dataset: Dataset) -> Dataset:
        file = dataset.root / "train.jsonl"
        file.write_text("\n".join(change(file.read_text().splitlines())))
        return dataset_in(dataset.root)

    return changed


def test_the_same_rows_elsewhere_are_the_same_data(run: Path, root: Path, tmp_path: Path) -> None:
    require_same_data(run, dataset_in(root))
    shutil.copytree(root, tmp_path / "newer")
    shutil.rmtree(root)
    require_same_data(run, dataset_in(tmp_path / "newer"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_lines(lambda lines: [*lines, lines[0].replace("q0", "q8")]), r"train \(8 rows then, 9 now\)"),
        (change_lines(lambda lines: lines[::-1]), r"train \(8 rows then, 8 now: others, or in another order\)"),
        (change_lines(lambda lines: [lines[0].replace('"left"', '"right"'), *lines[1:]]), "8 now: others"),
        (lambda dataset: replace(dataset, test=dataset.test[1:]), r"with: test \(8 rows then, 7 now\)\. Its order"),
        (lambda dataset: replace(dataset, train=[], bad_rows=["train.jsonl, row 1: x"]), "max_bad_rows: train.jsonl"),
    ],
)
def test_other_rows_are_refused(change: Callable[[Dataset], Dataset], words: str, run: Path, root: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        require_same_data(run, change(dataset_in(root)))
    assert "give it the earlier data (data.root=<them>), or start a new run" in str(caught.value)


def test_a_run_without_the_file_gets_it_once_and_in_silence(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dataset = dataset_in(root)
    require_same_data(tmp_path, dataset)
    note_data(tmp_path, dataset)
    noted = (tmp_path / FILE).read_text()
    note_data(tmp_path, replace(dataset, train=[]))
    assert (tmp_path / FILE).read_text() == noted
    assert not caplog.records


def test_a_damaged_file_is_named(run: Path, root: Path) -> None:
    for text in ("{", "[]", '{"train": 3}'):
        (run / FILE).write_text(text)
        with pytest.raises(DataError, match=r"data\.json is damaged .*; remove it"):
            require_same_data(run, dataset_in(root))


@pytest.mark.parametrize(
    ("module", "expensive"), [(mrpo.train, "running_parts"), (mrpo.sft.__main__, "policy_folder")], ids=["train", "sft"]
)
def test_commands_note_it_and_refuse_other_rows_before_the_run_is_touched(
    module: Any,
    expensive: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ResourceError("no room")

    monkeypatch.setattr(module, expensive, refuse)
    places = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", "cluster.min_free_memory_gib=0.5"]
    small = ["data.num_train=16", "data.num_test=2", "model.warm_start.num_scans=2"]
    assert module.main([*places, *small]) == 2
    (noted,) = (tmp_path / "runs").glob(f"*/*/{FILE}")
    again = [f"resume={noted.parent}", *places]
    assert module.main(again) == 2
    assert "no room" in capfd.readouterr().err.splitlines()[-1]

    (rows,) = (tmp_path / "cache").glob("phantom-*/test.jsonl")
    rows.write_text("\n".join(reversed(rows.read_text().splitlines())))
    before = (noted.parent / "events.log").read_bytes()
    assert module.main(again) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "began with: test (2 rows then, 2 now: others, or in another order)" in line
    assert (noted.parent / "events.log").read_bytes() == before
