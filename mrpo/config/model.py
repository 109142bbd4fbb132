"""The policy: which checkpoint or toy, and how it starts."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.choices import ToyFamily
from mrpo.config.fields import STRICT, NonNegativeInt, Positive, PositiveInt, Share


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ErrorRatesConfig:
    """Chance that a faulty demonstration states the prior instead of the truth, by attribute."""

    modality: Share = 0.5
    organ: Share = 0.5
    side: Share = 0.5
    half: Share = 0.5
    num_lesions: Share = 0.5


@dataclass(kw_only=True, frozen=True, config=STRICT)
class WarmStartConfig:
    """Supervised start of the phantom policy; only with `model.path=null`.

    True demonstrations teach it to see and speak; faulty ones then teach it the habit that reinforcement has to break.
    """

    num_scans: PositiveInt = 3072  # scans to draw demonstrations of
    batch_size: PositiveInt = 32
    true_steps: NonNegativeInt = 170  # steps on true demonstrations
    true_lr: Positive = 2e-3
    faulty_steps: NonNegativeInt = 60  # steps on faulty demonstrations
    faulty_lr: Positive = 1e-3
    error_rates: ErrorRatesConfig = ErrorRatesConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ModelConfig:
    """The policy: a checkpoint, or a toy model of a real family."""

    path: str | None = None  # Hugging Face folder or hub id; null builds a toy
    revision: str | None = None
    family: ToyFamily | None = None  # what the checkpoint of path must be; null: whatever it is
    toy_family: ToyFamily = ToyFamily.QWEN2_5_VL
    terse_prompt: bool = True  # bare question; real models need the full instruction (false)
    freeze_vision_tower: bool = False
    freeze_projector: bool = False  # what brings the tower's features to the language model
    max_pixels: PositiveInt = 802_816  # larger images are scaled down
    max_tiles: PositiveInt | None = None  # an image is cut into at most so many (InternVL); null: as its processor says
    warm_start: WarmStartConfig = WarmStartConfig()
