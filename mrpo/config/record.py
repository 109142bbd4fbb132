"""What a run leaves behind."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.choices import BestMetric, WandbMode
from mrpo.config.fields import STRICT, NonNegativeInt, Positive, PositiveInt


@dataclass(kw_only=True, frozen=True, config=STRICT)
class CheckpointConfig:
    """What to keep to resume from."""

    every_steps: NonNegativeInt = 50  # 0: only at the end
    keep_last: PositiveInt = 2
    # Copied to the main memory of rank 0's node, then written while training goes on; false: training waits for the
    # disk, and next to no memory is needed (docs/resume.md has the sums).
    asynchronous: bool = True
    # After a scheduler's SIGTERM; a checkpoint that takes longer is told of. A little less than what it leaves a run
    # until SIGKILL (Kubernetes and SLURM: 30 by default).
    grace_s: Positive = 25.0
    # With eval.every_steps: the checkpoint that is best at this is kept as well. It is chosen on the questions of
    # data.test_file, so name a validation file there where the test questions are to stay unseen.
    best: BestMetric = BestMetric.ACCURACY


@dataclass(kw_only=True, frozen=True, config=STRICT)
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = WandbMode.DISABLED
    project: str = "mrpo"
    entity: str | None = None
