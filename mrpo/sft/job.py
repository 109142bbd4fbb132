"""What a supervised run trains on and measures, put together and checked before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mrpo.checkpoint_source import policy_family
from mrpo.config import Config
from mrpo.data.load import Dataset
from mrpo.errors import DataError
from mrpo.families import Family
from mrpo.sft.order import Order
from mrpo.sft.targets import Demonstrations, demonstrations_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One supervised run before it starts."""

    config: Config  # `num_steps` is what the demonstrations make it
    dataset: Dataset
    family: Family
    train: Demonstrations
    held_out: Demonstrations
    order: Order

    @property
    def notices(self) -> list[str]:
        """What a user must know of the data."""
        found = [f"dropped: {row}" for row in self.dataset.bad_rows]
        found += [line for line in (self.train.left_out("training"), self.held_out.left_out("held-out")) if line]
        if not self.held_out.shown:
            found.append("no held-out question has a rationale: there is no held-out loss")
        return found


def plan_job(config: Config, dataset: Dataset, model_folder: Path | None) -> Job:
    """Demonstrations of both splits and the order in which they are shown.

    Args:
        config: of the run.
        dataset: of the run.
        model_folder: the policy's checkpoint; None for a toy.

    Raises:
        DataError: no training question has a rationale, or a text holds what only the asked form may.
    """
    family = policy_family(config, model_folder)
    train = demonstrations_of(dataset.train, family, config.data.kind)
    held_out = demonstrations_of(dataset.test, family, config.data.kind)
    if not train.shown:
        raise DataError(
            f"none of the {train.num_questions} training questions has a rationale, and supervised training learns "
            "from nothing else; add rationales (docs/data.md), or take a set that has them"
        )
    order = Order(
        num_examples=len(train.shown),
        batch_size=config.sft.batch_size,
        num_epochs=config.sft.num_epochs,
        seed=config.seed,
        shuffle=config.data.shuffle,
    )
    return Job(
        config=replace(config, num_steps=order.num_steps),
        dataset=dataset,
        family=family,
        train=train,
        held_out=held_out,
        order=order,
    )
