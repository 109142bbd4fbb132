"""A profile that a run's failure cuts short."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from mrpo.config import Config, plain
from mrpo.console import Console
from mrpo.errors import EngineError
from mrpo.profile.__main__ import ProfiledRun, short
from mrpo.profile.recording import ROLLOUT
from mrpo.profile.summary import SUMMARY
from mrpo.run_folder import RunFolder
from mrpo.tracking import NoTracker, Tracker
from mrpo.train import TrainingRun


@pytest.mark.parametrize("steps", [0, 1])
def test_what_was_recorded_until_then_is_summed_up(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def train(self: ProfiledRun, run: RunFolder, tracker: Tracker) -> None:
        for _ in range(steps):
            self._recording.called(ROLLOUT, started_s=0.0, seconds=1.5)
        raise EngineError("no engine is left")

    monkeypatch.setattr(TrainingRun, "_train", train)
    config = short(Config(runs_dir=str(tmp_path)))
    with (
        Console(1, file=io.StringIO()) as console,
        RunFolder.create(config.runs_dir, config.experiment, plain(config)) as run,
    ):
        profiled = ProfiledRun(config, None, None, None, console, 0.0)  # type: ignore[arg-type]  # no data is asked for
        with pytest.raises(EngineError, match="no engine is left"):
            asyncio.run(profiled._train(run, NoTracker()))
        summary = run.path / "profile" / SUMMARY
        assert summary.exists() == (steps > 0)
        assert not steps or summary.read_text().startswith("1 steps recorded")
