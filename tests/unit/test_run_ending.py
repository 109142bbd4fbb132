"""However a run ends, its folder does not say that it is running."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.config import Config
from mrpo.console import Console
from mrpo.errors import EngineError
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus, read_state
from mrpo.run_session import record_run
from mrpo.stop_signals import StopSignals
from mrpo.tracking import Tracker


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
