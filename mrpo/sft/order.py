"""Which demonstrations a step shows: a pure function of seed and step, so that a resumed run shows what it would have.

Epochs do not run into each other: the last step of an epoch shows what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of a supervised run."""

    num_examples: int
    batch_size: int
    num_epochs: int
    seed: int
    shuffle: bool = True  # anew in every epoch; False keeps the file's order

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every demonstration is shown once."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps_per_epoch * self.num_epochs

    def epochs_done(self, step: int) -> int | None:
        """How many epochs are done after `step` steps; None in the middle of one."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return None if rest else epochs

    def batch(self, step: int) -> list[int]:
        """Indices of the demonstrations of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        indices = np.arange(self.num_examples)
        if self.shuffle:
            indices = np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
        return [int(index) for index in indices[place * self.batch_size : (place + 1) * self.batch_size]]
