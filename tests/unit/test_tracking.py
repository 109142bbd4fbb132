"""Trackers get the numbers of the run, and say what is missing."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from mrpo.choices import WandbMode
from mrpo.config import WandbConfig
from mrpo.errors import ConfigError
from mrpo.tracking import FINISH_S, NoTracker, Tracker, WandbTracker, make_tracker


class FakeRun:
    """Takes what wandb's run takes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.summary: dict[str, float] = {}
        self.axes: dict[str, str | None] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_disabled_tracks_nothing_and_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = make_tracker(WandbConfig(), folder=tmp_path, experiment="demo", config_tree={})
    assert isinstance(tracker, NoTracker)
    tracker.step(1, {"accuracy": 1.0})
    tracker.evaluation("before", 0, {"eval/accuracy": 1.0})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_missing_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r'wandb.mode=offline needs .* pip install "mrpo\[wandb\]"'):
        make_tracker(WandbConfig(mode=WandbMode.OFFLINE), folder=tmp_path, experiment="demo", config_tree={})


def test_numbers_arrive_unchanged_under_our_step() -> None:
    run = FakeRun()
    tracker = WandbTracker(run)
    tracker.step(3, {"accuracy": 0.1 + 0.2})
    tracker.step(3, {"accuracy": 0.5})  # a step done again after a resume is not lost
    tracker.evaluation("before", 0, {"eval/accuracy": 0.25})
    tracker.finish(failed=True)
    assert run.axes == {"step": None, "*": "step"}
    assert run.rows == [
        {"step": 3, "accuracy": 0.1 + 0.2},
        {"step": 3, "accuracy": 0.5},
        {"step": 0, "eval/accuracy": 0.25},
    ]
    assert run.summary == {"before/eval/accuracy": 0.25}
    assert run.exit_code == 1


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """Of the real package, with all its files below tmp_path; the run's folder is `run`."""
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    folder = tmp_path / "run"
    folder.mkdir()
    config: dict[str, Any] = {"seed": 3}
    return make_tracker(WandbConfig(mode=WandbMode.OFFLINE), folder=folder, experiment="demo", config_tree=config)


def test_offline_run_of_the_real_package_stays_in_the_run_folder(offline: Tracker, tmp_path: Path) -> None:
    import wandb

    assert wandb.run is not None
    assert wandb.run.settings.finish_timeout == FINISH_S  # without it, `finish` waits for a network without a bound
    offline.step(1, {"accuracy": 0.30000000000000004})
    offline.finish()  # its writer is a process of its own, which ends with it
    (log,) = tmp_path.glob("run/wandb/offline-run-*/run-demo-run.wandb")
    assert json.dumps(0.30000000000000004).encode() in log.read_bytes()


def test_a_writer_that_is_killed_ends_nothing_and_is_told_of_once(
    offline: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    offline.step(1, {"accuracy": 0.5})
    writers = [child for child in psutil.Process().children(recursive=True) if child.name() == "wandb-core"]
    for writer in writers:
        writer.kill()
    assert writers
    assert not psutil.wait_procs(writers, timeout=60.0)[1]
    offline.step(2, {"accuracy": 0.5})  # may still go into the socket's buffer, or fail
    offline.step(3, {"accuracy": 0.5})
    offline.evaluation("after", 3, {"eval/accuracy": 0.25})
    offline.finish()
    (told,) = [record.message for record in caplog.records if record.name == "mrpo.tracking"]
    assert told.startswith("wandb gets no more numbers of this run (")


def test_the_exit_code_of_its_process_is_not_ours(caplog: pytest.LogCaptureFixture) -> None:
    WandbTracker(FakeRun(), close=partial(sys.exit, 2)).finish()
    assert caplog.messages == ["wandb gets no more numbers of this run (SystemExit 2); metrics.jsonl goes on"]
