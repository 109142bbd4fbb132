"""TensorBoard files."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.config.fields import STRICT


@dataclass(kw_only=True, frozen=True, config=STRICT)
class TensorBoardConfig:
    """TensorBoard."""

    enabled: bool = False  # files in tensorboard/ of the run folder
