"""`python -m mrpo.profile [overrides]`: a few steps of a training run, recorded: traces, flame graphs and a summary.

Everything is as in `python -m mrpo.train` with the same overrides, but that the run ends after `profile.warmup_steps` +
`profile.steps` steps, evaluates nothing, takes no checkpoint, and lies under `<runs_dir>/profile/`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mrpo.command_line import exit_code, quiet_libraries
from mrpo.compose import compose_config
from mrpo.config import Config
from mrpo.controller import Controller
from mrpo.errors import ConfigError, MRPOError
from mrpo.profile.recording import ROLLOUT, Recording
from mrpo.profile.summary import SUMMARY, profile_folder, summarise
from mrpo.profile.traced import TracedLearner, TracedRollout
from mrpo.protocols import Learner, RolloutPool
from mrpo.run_folder import RunFolder
from mrpo.tracking import Tracker
from mrpo.train import TrainingRun, carry_out


def main(arguments: Sequence[str]) -> int:
    """Profile one run; returns the exit code."""
    return exit_code(lambda: _profile(arguments))


def _profile(arguments: Sequence[str]) -> int:
    started = time.time()
    config = compose_config(arguments, adjust=short)
    if config.resume is not None:
        raise ConfigError("make profile begins a run of its own; leave resume out")
    return carry_out(config, ProfiledRun, started=started)


def short(config: Config) -> Config:
    """The settings of a run that is profiled."""
    profile = replace(config.profile, active=True)
    return replace(
        config,
        runs_dir=str(Path(config.runs_dir) / "profile"),
        num_steps=profile.warmup_steps + profile.steps,
        eval=replace(config.eval, before=False, after=False, every_steps=0),
        checkpoint=replace(config.checkpoint, every_steps=0),
        profile=profile,
    )


class ProfiledRun(TrainingRun):
    """A run whose last steps are recorded."""

    promise = "the step in hand is given up"
    command = None

    async def _train(self, run: RunFolder, tracker: Tracker) -> None:
        self._recording = Recording(folder=profile_folder(run.path))
        try:
            await super()._train(run, tracker)
        except MRPOError:
            if self._recording.calls:  # of the steps until then
                await self._summarise()
            raise
        await self._summarise()

    async def _summarise(self) -> None:
        self._recording.write_spans()
        with self.console.stage("summary of the profile"):
            text = await asyncio.to_thread(summarise, self._recording, self.config.profile)
        self.console.note(text)
        self.console.note(f"profile: {self._recording.folder / SUMMARY}, flames/*.svg, traces/*.json.gz")

    def controller(self, *arguments: Any, **named: Any) -> Controller:
        """The training's own, over parts that are traced."""
        recording, profile = self._recording, self.config.profile
        made = super().controller(*arguments, **named)
        made.saves_end = False
        shown = made.span

        @contextmanager
        def span(stage: str) -> Any:
            if stage == ROLLOUT:  # not before: the update is counted while the step still sends its weights
                recording.is_on = made.step >= profile.warmup_steps
            with ExitStack() as stack:
                stack.enter_context(shown(stage))
                stack.enter_context(recording.span(stage))
                yield

        made.learner = cast(Learner, TracedLearner(made.learner, recording, stacks=profile.stacks))
        rollout = cast(RolloutPool, TracedRollout(made.collector.rollout, recording))
        made.collector = replace(made.collector, rollout=rollout, span=span)
        made.span = span
        return made


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
