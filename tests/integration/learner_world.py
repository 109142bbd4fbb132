"""A small world for the learner's tests: toy models, images, completions, and a rank in the test's own process."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learner.spec import LearnerSpec
from mrpo.choices import Device
from mrpo.config import LearnerConfig, LoraConfig, LossConfig, WatchdogConfig
from mrpo.families import family_of
from mrpo.phantom.toy_models import build_toy_model
from mrpo.prompts import chat_messages
from mrpo.types import ScoreSample, TrainSample

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl")
CORPUS = ["The organ is the liver.", "Two bright lesions lie in the upper left region.", "Where is the finding?"] * 4
IMAGE_SIZES = ((84, 84), (84, 84), (56, 112), (84, 84))  # pixels


def build_world(folder: Path) -> None:
    """Write a toy model of every family and a few images of noise."""
    for name in FAMILIES:
        build_toy_model(name, folder / name, corpus=CORPUS, seed=1)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(IMAGE_SIZES):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def spec(
    world: Path,
    family: str = "qwen2_5_vl",
    *,
    loss: LossConfig | None = None,
    lora: LoraConfig | None = None,
    max_tiles: int | None = None,
    freeze_vision_tower: bool = False,
    freeze_projector: bool = False,
    watchdog: WatchdogConfig | None = None,
    **learner: Any,
) -> LearnerSpec:
    """A learner of one CPU thread; keywords are fields of `LearnerConfig`."""
    # With AdamW's usual eps the first update is the gradient's sign, which turns rounding into a real difference.
    settings = {"num_threads": 1, "lr": 1e-3, "adam_eps": 1e-3, "start_timeout_s": 120.0} | learner
    return LearnerSpec(
        model_folder=str(world / family),
        learner=LearnerConfig(**settings),
        loss=loss or LossConfig(),
        device=Device.CPU,
        seed=0,
        max_pixels=10_000,
        max_tiles=max_tiles,
        freeze_vision_tower=freeze_vision_tower,
        freeze_projector=freeze_projector,
        lora=lora or LoraConfig(),
        watchdog=watchdog or WatchdogConfig(),
        terse=True,
    )


def completions(
    world: Path, family: str = "qwen2_5_vl", *, num_groups: int = 3, group_size: int = 3, seed: int = 0
) -> list[TrainSample]:
    """Groups of completions of random words, each group about one image, of different lengths."""
    import transformers

    row = family_of(family)
    processor = getattr(transformers, row.processor_class).from_pretrained(world / family)
    rng, sampler = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    even = -np.log(len(processor.tokenizer))  # about what a toy that has learned nothing gives any token
    samples = []
    for group in range(num_groups):
        image = world / f"{group % len(IMAGE_SIZES)}.png"
        text = processor.apply_chat_template(
            chat_messages(f"Where is finding {group}?", row, terse=True), add_generation_prompt=True, tokenize=False
        )
        prompt = list(processor(text=[text], images=[[Image.open(image)]])["input_ids"][0])
        for member in range(group_size):
            length = int(rng.integers(3, 14))
            samples.append(
                TrainSample(
                    key=f"q{group}#{member}",
                    image=str(image),
                    prompt_token_ids=prompt,
                    completion_token_ids=rng.integers(0, 200, length).tolist(),
                    advantages=rng.normal(size=length).tolist(),
                    rollout_logprobs=(even + 0.5 * sampler.normal(size=length)).tolist(),
                    policy_version=0,
                )
            )
    return samples


def to_score(samples: Sequence[TrainSample]) -> list[ScoreSample]:
    """The same completions, to be scored."""
    return [
        ScoreSample(
            key=sample.key,
            image=sample.image,
            prompt_token_ids=sample.prompt_token_ids,
            completion_token_ids=sample.completion_token_ids,
        )
        for sample in samples
    ]


def first_moments(rank: Any) -> Any:
    """All of AdamW's first moments, flat. After one step from zero they are 0.1 times the clipped gradient."""
    import torch

    return torch.cat([rank.optimizer.moment(parameter, "exp_avg").flatten() for parameter in rank.model.parameters()])


def relative_difference(found: Any, expected: Any) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@functools.cache
def device() -> Any:
    """Join a process group of one rank; once a process, because DeepSpeed keeps groups it made in the first."""
    from torch import distributed as dist

    from learner.distributed import free_port, join_group

    joined = join_group(rank=0, world_size=1, address="127.0.0.1", port=free_port(), device=Device.CPU)
    atexit.register(dist.destroy_process_group)
    return joined


def make(settings: LearnerSpec) -> Any:
    """A learner rank in this process."""
    from learner.rank import build_rank

    return build_rank(settings, rank=0, world_size=1, device=device())
