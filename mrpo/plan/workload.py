"""Tokens of a step, and the largest micro-batch they make."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.config import Config
from mrpo.plan.activations import Load
from mrpo.plan.architecture import Architecture

# Estimates: tokens of a prompt beside its image, which are the chat template, the question and, unless it is left out,
# the instruction.
PROMPT_TOKENS = 128
TERSE_PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One optimizer step at its largest: each image as large as it may be, each completion as long."""

    completions: int
    image_tokens: int  # of one image
    text_tokens: int  # of one prompt, beside its image
    completion_tokens: int  # of one completion
    micro_batches: int  # a rank and step
    completions_per_micro_batch: int
    load: Load

    @property
    def prompt_tokens(self) -> int:
        """Of one prompt with its image."""
        return self.image_tokens + self.text_tokens

    @property
    def sample_tokens(self) -> int:
        """Of one prompt with its completion."""
        return self.prompt_tokens + self.completion_tokens


def image_tokens_of(architecture: Architecture, *, max_pixels: int, max_tiles: int | None) -> int:
    """The most tokens one image becomes: by its pixels (Qwen), or by tiles and a small view of the whole (InternVL)."""
    vision = architecture.vision
    if vision.tile is not None:
        assert architecture.max_tiles is not None
        tiles = max_tiles or architecture.max_tiles
        per_tile = (vision.tile // (vision.patch * vision.merge)) ** 2
        return per_tile * (tiles + 1 if tiles > 1 else 1)
    assert architecture.max_pixels is not None
    pixels = max(min(max_pixels, architecture.max_pixels), architecture.min_pixels)
    return max(1, round(pixels / (vision.patch * vision.merge) ** 2))


def workload_of(config: Config, architecture: Architecture) -> Workload:
    """What a step of a run comes to."""
    rollout, learner = config.rollout, config.learner
    image_tokens = image_tokens_of(architecture, max_pixels=config.model.max_pixels, max_tiles=config.model.max_tiles)
    text_tokens = TERSE_PROMPT_TOKENS if config.model.terse_prompt else PROMPT_TOKENS
    prompt = image_tokens + text_tokens
    sample = prompt + rollout.max_new_tokens
    completions = rollout.prompts_per_step * rollout.group_size
    together = max(1, learner.tokens_per_micro_batch // sample)
    of_rank = -(-completions // learner.num_ranks)
    micro_batches = -(-of_rank // together)
    # Completions that end early let a budget hold more prompts, down to prompts alone.
    tokens = min(max(learner.tokens_per_micro_batch, sample), of_rank * sample)
    images = min(rollout.prompts_per_step, max(1, tokens // prompt))
    return Workload(
        completions=completions,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        completion_tokens=rollout.max_new_tokens,
        micro_batches=micro_batches,
        completions_per_micro_batch=min(together, of_rank),
        load=Load(
            tokens=tokens,
            completion_tokens=-(-tokens * rollout.max_new_tokens // sample),
            images=images,
            image_tokens=images * image_tokens,
            num_micro_batches=micro_batches,
        ),
    )
