"""Experiment trackers. The same names and digits go to them as to `metrics.jsonl`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mrpo.choices import WandbMode
from mrpo.config import TensorBoardConfig, WandbConfig
from mrpo.errors import ConfigError, ResourceError
from mrpo.tensorboard import TensorBoardTracker

logger = logging.getLogger(__name__)

FINISH_S = 20.0  # for what is not uploaded at a run's end; the rest stays on disk for `wandb sync`


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
    reject the steps that a resumed run does again.

    It never ends the run that it follows: `ray job stop` and the kernel's memory killer end wandb's own process too,
    and from then on every call of it fails. That is said once; `metrics.jsonl` has all that it misses.
    """

    def __init__(self, run: Any, close: Callable[[], object] = int) -> None:
        """Begin.

        Args:
            run: an open `wandb.Run`.
            close: ends what wandb runs beside this process (`wandb.teardown`).
        """
        self._run = run
        self._close = close
        self._has_failed = False
        self._try(run.define_metric, "step")
        self._try(partial(run.define_metric, step_metric="step"), "*")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers of one training step."""
        if not self._has_failed:
            self._try(self._run.log, {"step": step, **metrics})

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers of one evaluation; before and after also become the run's summary values."""
        if not self._has_failed:
            self._try(self._run.log, {"step": step, **metrics})
            self._try(self._run.summary.update, {f"{name}/{key}": value for key, value in metrics.items()})

    def finish(self, *, failed: bool = False) -> None:
        """Flush and close, within `FINISH_S` and a few seconds."""
        self._try(partial(self._run.finish, exit_code=1 if failed else 0))
        self._try(self._close)  # at the end of the process it would fail with a traceback

    def _try(self, call: Callable[..., object], *values: object) -> None:
        try:
            call(*values)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the edge to wandb's process; `teardown` exits with its code
            if not self._has_failed:
                self._has_failed = True
                what = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
                logger.error("wandb gets no more numbers of this run (%s); metrics.jsonl goes on", what)


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
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_S),
        )
    except (wandb.errors.Error, OSError) as error:
        raise ResourceError(
            f"wandb.mode={config.mode} cannot start: {error}; set wandb.mode=offline to log into {folder}"
        ) from None
    return WandbTracker(run, wandb.teardown)
