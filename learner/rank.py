"""One rank of the learner: a plain class, so that it runs under Ray and in a test's own process alike."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch

from learner.distributed import threads_of_rank
from learner.images import ImageStore
from learner.inputs import InputBuilder
from learner.lora import Adapters, add_adapters
from learner.model import family_in, freeze_vision, load_model, load_processor, torch_dtype
from learner.optimizer import OptimizerState, make_optimizer
from learner.policy import Policy
from learner.reference import BaseReference, Reference
from learner.spec import LearnerSpec
from learner.weight_source import WeightSource
from learner.zero_config import reference_config, zero_config
from mrpo.families import Family


@dataclass(slots=True, kw_only=True)
class Rank:
    """Everything a rank holds; the process group must be up before it is built."""

    spec: LearnerSpec
    rank: int
    world_size: int
    device: torch.device
    family: Family
    processor: Any
    policy: Policy
    engine: Any  # DeepSpeed's wrapper of `policy`
    optimizer: OptimizerState
    adapters: Adapters | None  # None: full fine-tuning
    reference: Reference | BaseReference | None
    images: ImageStore
    inputs: InputBuilder
    source: WeightSource
    num_steps: int = 0  # optimizer steps of the run, without the warm start
    frozen_hash: str | None = None  # kept by `learner.frozen_hash`

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self.policy.model


def build_rank(spec: LearnerSpec, *, rank: int, world_size: int, device: torch.device, num_threads: int = 0) -> Rank:
    """Load the model, put adapters on it where `spec.lora` asks for them, hand it to DeepSpeed and make the reference.

    Args:
        spec: what the rank is built from.
        rank: its number.
        world_size: of the group.
        device: where it computes.
        num_threads: of torch on the CPU; 0: as if all ranks were on this machine.

    Raises:
        ConfigError: unsupported family, dtype or combination of settings.
    """
    learner = spec.learner
    torch.set_num_threads(num_threads or threads_of_rank(learner, ranks_on_node=world_size))
    seed_everything(spec.seed)
    family = family_in(spec.model_folder)
    dtype = torch_dtype(learner.dtype, device)
    options = {"bf16": dtype == torch.bfloat16, "on_gpu": device.type == "cuda"}
    config = zero_config(learner, **options)
    partitioned = learner.zero_stage == 3

    def load() -> Policy:
        with _loading_partitioned(config if partitioned else None):
            model = load_model(
                spec.model_folder,
                family,
                dtype=dtype,
                device=device,
                attention=learner.attention,
                gradient_checkpointing=learner.gradient_checkpointing,
            )
        return Policy(model, chunk_tokens=learner.logprob_chunk_tokens)

    policy = load()
    adapters = add_adapters(policy.model, family, spec.lora)
    reference: Reference | BaseReference | None = None
    if spec.loss.beta > 0.0 and adapters is None:
        reference = Reference(
            load() if partitioned else copy.deepcopy(policy),
            config=reference_config(learner, **options) if partitioned else None,
        )
    freeze_vision(policy.model, family, tower=spec.freeze_vision_tower, projector=spec.freeze_projector)
    source = WeightSource(policy.model, adapters)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=make_optimizer(policy, learner), config=config)
    if spec.loss.beta > 0.0 and adapters is not None:
        reference = BaseReference(adapters, engine)
    processor = load_processor(spec.model_folder, family, max_pixels=spec.max_pixels, max_tiles=spec.max_tiles)
    images = ImageStore(processor, family, max_pixels=spec.max_pixels)
    return Rank(
        spec=spec,
        rank=rank,
        world_size=world_size,
        device=device,
        family=family,
        processor=processor,
        policy=policy,
        engine=engine,
        optimizer=OptimizerState(engine, learner.zero_stage),
        adapters=adapters,
        reference=reference,
        images=images,
        inputs=InputBuilder(policy.model, images),
        source=source,
    )


def seed_everything(seed: int) -> None:
    """Seed every generator a forward pass could draw from; all ranks alike."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _loading_partitioned(config: dict[str, Any] | None) -> Iterator[None]:
    """Under ZeRO-3, let transformers load each parameter straight into its partitions."""
    if config is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    keep = HfDeepSpeedConfig(copy.deepcopy(config))  # transformers holds only a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del keep
