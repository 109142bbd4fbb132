"""However a run ends, its folder does not say that it is running."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo import run_session
from mrpo.config import Config
from mrpo.console import Console
from mrpo.controller import StopRequested
from mrpo.errors import EngineError
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus, read_state
from mrpo.run_session import record_run
from mrpo.stop_signals import StopSignals
from mrpo.tracking import NoTracker, Tracker


def ended(runs: Path, error: BaseException | None) -> tuple[RunStatus, str]:
    """Status and last event of a run whose training raises `error`."""
    folders: list[Path] = []

    async def train(run: RunFolder, tracker: Tracker) -> None:
        folders.append(run.path)
        assert read_state(run.path).status == RunStatus.RUNNING
        if error is not None:
            raise error

    config = replace(Config(), runs_dir=str(runs))
    with Console(1, file=io.StringIO()) as console:
        signals = StopSignals(console, "", grace_s=1.0)
        work = record_run(config, console, signals, train, command="make train", started=0.0)
        if error is None:
            assert asyncio.run(work) == 0
        else:
            with pytest.raises(type(error)):
                asyncio.run(work)
    (folder,) = folders
    return read_state(folder).status, (folder / "events.log").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EngineError("no engine is left"), "run interrupted: no engine is left"),
        (KeyError("step"), "run interrupted: KeyError: 'step'"),
        (RuntimeError("Traceback: far away\nCUDA error"), "run interrupted: RuntimeError: CUDA error"),
        (MemoryError(), "run interrupted: MemoryError"),
        (KeyboardInterrupt(), "run interrupted: KeyboardInterrupt"),
        (asyncio.CancelledError(), "run interrupted: CancelledError"),
    ],
)
def test_a_run_that_ends_early_says_so(error: BaseException, told: str, tmp_path: Path) -> None:
    status, event = ended(tmp_path, error)
    assert status == RunStatus.INTERRUPTED
    assert event.endswith(told)


def test_a_run_that_is_through_is_finished(tmp_path: Path) -> None:
    assert ended(tmp_path, None)[0] == RunStatus.FINISHED


@pytest.mark.parametrize(("command", "ways_on"), [("make sft", 1), (None, 0)])
def test_what_goes_on_with_a_stopped_run_is_said_where_something_does(
    command: str | None, ways_on: int, tmp_path: Path
) -> None:
    async def train(run: RunFolder, tracker: Tracker) -> None:
        raise StopRequested("stopped after 2 steps")

    config, output = replace(Config(), runs_dir=str(tmp_path)), io.StringIO()
    with Console(1, file=output) as console:
        signals = StopSignals(console, "", grace_s=1.0)
        asyncio.run(record_run(config, console, signals, train, command=command, started=0.0))
    shown = " ".join(output.getvalue().split())
    assert "stopped after 2 steps" in shown
    assert shown.count(f'{command} ARGS="resume=') == shown.count("resume=") == ways_on


class WaitingTracker(NoTracker):
    """Waits for a network at the end; a user has had enough of it."""

    def __init__(self, output: io.StringIO) -> None:
        self._output = output
        self.shown = ""  # by then

    def finish(self, *, failed: bool = False) -> None:
        self.shown = self._output.getvalue()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60.0)
        raise AssertionError("the signal was not heard")


def test_a_tracker_that_waits_at_the_end_comes_after_the_conclusion_and_hears_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    tracker = WaitingTracker(output)

    def make(*arguments: object, **named: object) -> Tracker:
        return tracker

    async def train(run: RunFolder, tracker: Tracker) -> None:
        signals.catch()
        folders.append(run.path)

    monkeypatch.setattr(run_session, "make_trackers", make)
    config, folders = replace(Config(), runs_dir=str(tmp_path)), list[Path]()
    with Console(1, file=output) as console:
        signals = StopSignals(console, "", grace_s=1.0)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(record_run(config, console, signals, train, command="make train", started=0.0))
    assert read_state(folders[0]).status == RunStatus.FINISHED
    assert "0 of 1 steps" in tracker.shown
