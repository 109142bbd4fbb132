"""Questions for training and held-out evaluation."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.choices import DataKind
from mrpo.config.fields import STRICT, NonNegative, NonNegativeInt, PositiveInt


@dataclass(kw_only=True, frozen=True, config=STRICT)
class DataConfig:
    """Questions for training and held-out evaluation."""

    kind: DataKind = DataKind.PHANTOM
    root: str | None = None  # folder of the data set; image paths are relative to it
    train_file: str = "train.jsonl"  # kind=jsonl, relative to root
    test_file: str = "test.jsonl"
    num_train: PositiveInt | None = 2048  # questions used; null: all
    num_test: PositiveInt | None = 500
    seed: NonNegativeInt = 0  # of the phantom generator
    noise: NonNegative = 0.06  # standard deviation of the phantom's pixel noise, share of full scale
    max_bad_rows: NonNegativeInt = 0  # unreadable rows tolerated (each reported) before the command fails
    shuffle: bool = True
