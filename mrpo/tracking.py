"""Experiment trackers. The same names and digits go to them as to `metrics.jsonl`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mrpo.choices import WandbMode
from mrpo.config import TensorBoardConfig, WandbConfig
from mrpo.errors import ConfigError, ResourceError
from mrpo.tensorboard import TensorBoardTracker

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Follows a run from outside its folder."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one training step."""
        ...

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one evaluation, made after `step` steps."""
        ...

    def finish(self, *, failed: bool = False) -> None:
        """The run is over; `failed` marks it so."""
        ...


class NoTracker:
    """Follows nothing."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to do."""

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to do."""

    def finish(self, *, failed: bool = False) -> None:
        """Nothing to do."""


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Take them in the order in which they are told."""
        self._trackers = trackers

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.step(step, metrics)

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.evaluation(name, step, metrics)

    def finish(self, *, failed: bool = False) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.finish(failed=failed)


class WandbTracker:
    """A Weights & Biases run. Our step travels as a metric and is the x-axis: wandb's own only ever grows, and would
    reject the steps that a resumed run does again."""

    def __init__(self, run: Any) -> None:
        """Take an open `wandb.Run`."""
        self._run = run
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers of one training step."""
        self._run.log({"step": step, **metrics})

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers of one evaluation; before and after also become the run's summary values."""
        self._run.log({"step": step, **metrics})
        for key, value in metrics.items():
            self._run.summary[f"{name}/{key}"] = value

    def finish(self, *, failed: bool = False) -> None:
        """Flush and close."""
        self._run.finish(exit_code=1 if failed else 0)


def make_trackers(
    wandb: WandbConfig,
    tensorboard: TensorBoardConfig,
    *,
    folder: Path,
    experiment: str,
    config_tree: Mapping[str, Any],
) -> Tracker:
    """The trackers the configuration asks for, as one.

    Args:
        wandb, tensorboard: of the run.
        folder, experiment, config_tree: as `make_tracker`.

    Raises:
        ConfigError: a package is not installed.
        ResourceError: wandb cannot start.
    """
    files = [TensorBoardTracker(folder)] if tensorboard.enabled else []
    return Trackers([make_tracker(wandb, folder=folder, experiment=experiment, config_tree=config_tree), *files])


def make_tracker(config: WandbConfig, *, folder: Path, experiment: str, config_tree: Mapping[str, Any]) -> Tracker:
    """Weights & Biases, as the configuration asks for it.

    Args:
        config: mode, project and entity. `online` needs the key in WANDB_API_KEY or an earlier `wandb login`.
        folder: the run folder; offline files go to `wandb/` in it. Its name and the experiment's make the run's id,
            so that a resumed run goes on in the same one.
        experiment: groups runs.
        config_tree: the resolved configuration as plain data.

    Raises:
        ConfigError: wandb is not installed.
        ResourceError: it cannot start, for example without a network or a key.
    """
    if config.mode == WandbMode.DISABLED:
        return NoTracker()
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f'wandb.mode={config.mode} needs the wandb package: pip install "mrpo[wandb]", or set wandb.mode=disabled'
        ) from None
    try:
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=experiment,
            name=f"{experiment}/{folder.name}",
            id=f"{experiment}-{folder.name}",
            resume="allow",
            dir=str(folder),
            mode="online" if config.mode == WandbMode.ONLINE else "offline",
            config=dict(config_tree),
            settings=wandb.Settings(console="off", silent=True),
        )
    except (wandb.errors.Error, OSError) as error:
        raise ResourceError(
            f"wandb.mode={config.mode} cannot start: {error}; set wandb.mode=offline to log into {folder}"
        ) from None
    return WandbTracker(run)
