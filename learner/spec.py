"""What a learner rank is built from. Picklable and light: the controller's process makes it without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.choices import Device, Placement
from mrpo.config import Config, LearnerConfig, LoraConfig, LossConfig, WatchdogConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """Everything a rank needs to know. Made by the composition root, read by every rank."""

    model_folder: str  # Hugging Face folder, readable on every node
    learner: LearnerConfig
    loss: LossConfig
    device: Device
    seed: int
    max_pixels: int
    lora: LoraConfig
    watchdog: WatchdogConfig
    max_tiles: int | None = None  # as `model.max_tiles`
    freeze_vision_tower: bool = False
    freeze_projector: bool = False
    shares_gpu: bool = False  # with an engine, in turns
    terse: bool = False  # how `sft` writes its prompts


def spec_of(config: Config, model_folder: str) -> LearnerSpec:
    """The learner's part of a run's configuration."""
    return LearnerSpec(
        model_folder=model_folder,
        learner=config.learner,
        loss=config.algorithm.loss,
        device=config.cluster.device,
        seed=config.seed,
        max_pixels=config.model.max_pixels,
        max_tiles=config.model.max_tiles,
        freeze_vision_tower=config.model.freeze_vision_tower,
        freeze_projector=config.model.freeze_projector,
        lora=config.learner.lora,
        shares_gpu=config.cluster.placement == Placement.COLOCATED,
        terse=config.model.terse_prompt,
        watchdog=config.watchdog,
    )
