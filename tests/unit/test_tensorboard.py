"""TensorBoard files hold the digits of the run, and steps that are done again replace those on file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from mrpo.choices import WandbMode
from mrpo.config import TensorBoardConfig, WandbConfig
from mrpo.errors import ConfigError
from mrpo.tensorboard import TensorBoardTracker
from mrpo.tracking import make_trackers
from tests.tensorboard_files import read_scalars


def test_names_steps_and_digits_arrive_unchanged(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.evaluation("before", 0, {"eval/accuracy": 0.1 + 0.2})
    tracker.step(1, {"policy/loss": 1 / 3, "time/step_s": 2.5})
    tracker.finish()
    assert read_scalars(tmp_path) == {
        ("eval/accuracy", 0): 0.1 + 0.2,
        ("policy/loss", 1): 1 / 3,
        ("time/step_s", 1): 2.5,
    }


def test_steps_done_again_replace_those_before(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    for step in (1, 2, 3):
        tracker.step(step, {"policy/loss": 1.0, "time/step_s": float(step)})
    tracker.step(2, {"policy/loss": 2.0, "time/step_s": 2.0})  # rewound within the run
    tracker.finish()
    tracker = TensorBoardTracker(tmp_path)
    tracker.step(2, {"policy/loss": 3.0, "time/step_s": 2.0})  # resumed
    tracker.finish()
    losses = {step: value for (name, step), value in read_scalars(tmp_path).items() if name == "policy/loss"}
    assert losses == {1: 1.0, 2: 3.0}


def test_an_evaluation_first_of_all_after_a_resume_keeps_its_step(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    for step in (1, 2):
        tracker.step(step, {"policy/loss": float(step), "time/step_s": 1.0})
    tracker.finish()
    tracker = TensorBoardTracker(tmp_path)
    tracker.evaluation("step_1", 1, {"eval/accuracy": 0.5})  # resumed at step 1
    tracker.finish()
    found = read_scalars(tmp_path)
    assert found["policy/loss", 1] == 1.0
    assert ("policy/loss", 2) not in found


def test_a_full_disk_ends_the_files_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    tracker = TensorBoardTracker(tmp_path)
    with caplog.at_level(logging.ERROR):
        tracker.step(1, {"time/step_s": 1.0})
        tracker.step(2, {"time/step_s": 1.0})
    tracker.finish()
    assert [record.message.split(":")[0] for record in caplog.records] == ["no more TensorBoard files of this run"]


def test_missing_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r'needs the tensorboardX package: pip install "mrpo\[tensorboard\]"'):
        TensorBoardTracker(tmp_path)


@pytest.mark.parametrize("enabled", [False, True])
def test_the_configuration_decides(tmp_path: Path, enabled: bool) -> None:
    tracker = make_trackers(
        WandbConfig(mode=WandbMode.DISABLED),
        TensorBoardConfig(enabled=enabled),
        folder=tmp_path,
        experiment="demo",
        config_tree={},
    )
    tracker.step(1, {"time/step_s": 1.0})
    tracker.finish()
    assert (tmp_path / "tensorboard").is_dir() == enabled
