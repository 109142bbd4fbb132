"""Models large enough that tensors outweigh fixed costs, and the memory that a learner's step on them really takes.

Every block that PyTorch's CPU allocator hands out or takes back is reported by its profiler with the sum allocated at
that moment, temporaries inside operators and the backward pass included. Weights that are still mapped from a file come
from elsewhere; they are counted once by their storages.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from learner.spec import LearnerSpec
from mrpo.batching import plan_micro_batches
from mrpo.choices import Device
from mrpo.phantom.toy_models import build_toy_model
from mrpo.plan.activations import Load
from mrpo.plan.architecture import read_folder
from mrpo.plan.learner_memory import RankMemory, RankSettings, rank_memory
from mrpo.types import TrainSample
from tests.integration.learner_world import CORPUS, make

IMAGE_SIZE = 224  # pixels a side: 256 patches, which become 64 image tokens
TEXT = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
VISION_LAYERS = {"qwen2_5_vl": "depth", "qwen3_vl": "depth", "internvl": "num_hidden_layers"}
VISION_HEADS = {"qwen2_5_vl": "num_heads", "qwen3_vl": "num_heads", "internvl": "num_attention_heads"}
IMAGE_TOKENS, COMPLETION = 64, 120
PROMPT_TEXT = 20  # tokens of a prompt beside its image
MAX_PIXELS = 100_000  # more than an image has
BUCKET_ELEMENTS = 1_000_000  # the usual buckets would be most of these models' memory, and hide the rest
TOLERANCE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes of live tensors."""

    before: int  # when the step begins
    peak: int  # within it


def build_model(family: str, folder: Path) -> None:
    """A model of about 30 million parameters beside a toy's own tokenizer and processor."""
    import transformers

    build_toy_model(family, folder, corpus=CORPUS, seed=1, image_size=IMAGE_SIZE)
    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in TEXT.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * TEXT["num_hidden_layers"]
    config.text_config.rope_parameters = dict(config.text_config.rope_parameters)
    head_dim = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    if "mrope_section" in config.text_config.rope_parameters:
        config.text_config.rope_parameters["mrope_section"] = [head_dim // 8, head_dim * 3 // 16, head_dim * 3 // 16]
    if hasattr(config.text_config, "head_dim"):
        config.text_config.head_dim = head_dim
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    vision = config.vision_config
    setattr(vision, VISION_LAYERS[family], 4)
    setattr(vision, VISION_HEADS[family], 4)
    vision.hidden_size, vision.intermediate_size = 256, 704
    if hasattr(vision, "out_hidden_size"):
        vision.out_hidden_size = TEXT["hidden_size"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, config.architectures[0])(config)
    model.save_pretrained(folder)


def samples_of(folder: Path, *, num: int) -> list[TrainSample]:
    """Completions of equal length, two on each image."""
    config = json.loads((folder / "config.json").read_text())
    rng = np.random.default_rng(0)
    found = []
    for number in range(num):
        image = folder / f"{number // 2}.png"
        if not image.is_file():
            Image.fromarray(rng.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(image)
        start = [config["vision_start_token_id"]] if "vision_start_token_id" in config else []
        prompt = [*start, *[config["image_token_id"]] * IMAGE_TOKENS, *rng.integers(0, 200, PROMPT_TEXT).tolist()]
        found.append(
            TrainSample(
                key=f"q{number}",
                image=str(image),
                prompt_token_ids=prompt,
                completion_token_ids=rng.integers(0, 200, COMPLETION).tolist(),
                advantages=rng.normal(size=COMPLETION).tolist(),
                rollout_logprobs=rng.normal(-5.0, 0.1, size=COMPLETION).tolist(),
                policy_version=0,
            )
        )
    return found


def plan_step(settings: LearnerSpec, samples: list[TrainSample]) -> RankMemory:
    """The plan of one rank's step on samples of one length, with ZeRO's buckets as small as `BUCKET_ELEMENTS`."""
    length = len(samples[0].prompt_token_ids) + COMPLETION
    (micro_batches,) = plan_micro_batches(
        [length] * len(samples), num_ranks=1, tokens_per_micro_batch=settings.learner.tokens_per_micro_batch
    )
    size = max(map(len, micro_batches))
    images = max(len({samples[index].image for index in batch}) for batch in micro_batches)
    return rank_memory(
        read_folder(Path(settings.model_folder)),
        RankSettings(
            learner=replace(settings.learner, lora=settings.lora),
            num_ranks=1,
            on_gpu=settings.device == Device.GPU,
            reference=settings.loss.beta > 0,
            freeze_tower=settings.freeze_vision_tower,
            freeze_projector=settings.freeze_projector,
            load=Load(
                tokens=size * length,
                completion_tokens=size * COMPLETION,
                images=images,
                image_tokens=images * IMAGE_TOKENS,
                num_micro_batches=len(micro_batches),
            ),
            bucket_elements=BUCKET_ELEMENTS,
        ),
    )


def measure(spec: LearnerSpec, samples: list[TrainSample]) -> Measured:
    """Build a rank, take one step, and measure a second one.

    What is there when a step begins stays until it ends, so that the profiler need not have seen it allocated.
    """
    from learner.step import train_step

    gc.collect()
    others = _live_bytes()  # of ranks and worlds before
    rank = make(spec)
    train_step(rank, samples, progress=0.0)
    gc.collect()
    before = _live_bytes() - others
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(rank, samples, progress=0.5)
    assert profiler.profiler is not None
    roots = profiler.profiler.kineto_results.experimental_event_tree()
    blocks = [event for event in _flat(roots) if event.tag == _EventType.Allocation]
    blocks.sort(key=lambda event: event.start_time_ns)
    # The sum goes on from measurement to measurement; it starts with what is left of the one before.
    first = blocks[0].extra_fields
    left = first.total_allocated - first.alloc_size
    return Measured(before=before, peak=before + max(block.extra_fields.total_allocated for block in blocks) - left)


def _flat(events: Any) -> Iterator[Any]:
    stack = list(events)
    while stack:
        event = stack.pop()
        yield event
        stack += event.children


def _live_bytes() -> int:
    """Bytes of all storages some tensor of this process holds."""
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type == "cpu" and item.layout == torch.strided:
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    storages.pop(0, None)
    return sum(storages.values())
