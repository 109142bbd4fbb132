"""Every parameter of a model with its name and shape, as transformers' classes make them.

The names are those of the live model (`model.visual.…`), so that the prefixes of `mrpo.families` and the names of
adapters' targets apply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from mrpo.plan.architecture import Architecture, VisionSizes

Shape = tuple[int, ...]
Named = tuple[str, Shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters by what happens to them."""

    total: int
    vision: int  # tower and projector
    embedding: int
    head: int  # 0 where it is the embedding
    adapters: int
    trainable: int
    small: int  # of the total, in tensors that ZeRO-3 leaves whole
    largest: int  # parameters of the largest tensor


@cache
def tensors_of(architecture: Architecture) -> Mapping[str, Shape]:
    """All parameters; a head that is tied to the embedding is not there a second time."""
    return MappingProxyType(dict(_all(architecture)))


def count(
    architecture: Architecture,
    *,
    lora_rank: int,
    lora_targets: Sequence[str],
    freeze_tower: bool,
    freeze_projector: bool,
    small_below: int,
) -> ParameterCounts:
    """Count a model's parameters under a run's settings.

    Args:
        architecture: the sizes.
        lora_rank: 0: full fine-tuning.
        lora_targets: names of linear layers of the language model.
        freeze_tower: the vision tower is not trained; no matter under adapters.
        freeze_projector: likewise.
        small_below: tensors with fewer elements count as small.
    """
    tensors = tensors_of(architecture)
    sizes = {name: math.prod(shape) for name, shape in tensors.items()}
    family = architecture.family
    vision = {name for name in sizes if name.startswith((*family.vision_prefixes, *family.projector_prefixes))}
    projector = {name for name in vision if name.startswith(family.projector_prefixes)}
    adapters = sum(adapter_sizes(architecture, rank=lora_rank, targets=lora_targets).values())
    frozen = (vision - projector if freeze_tower else set()) | (projector if freeze_projector else set())
    return ParameterCounts(
        total=sum(sizes.values()),
        vision=sum(sizes[name] for name in vision),
        embedding=sizes["model.language_model.embed_tokens.weight"],
        head=0 if architecture.text.tied else sizes["lm_head.weight"],
        adapters=adapters,
        trainable=adapters if lora_rank else sum(size for name, size in sizes.items() if name not in frozen),
        small=sum(size for size in sizes.values() if size < small_below),
        largest=max(sizes.values()),
    )


def adapter_sizes(architecture: Architecture, *, rank: int, targets: Sequence[str]) -> dict[str, int]:
    """Parameters that low-rank adapters add to each linear layer: rank · (inputs + outputs) (arXiv 2106.09685)."""
    if not rank:
        return {}
    return {
        name: rank * sum(shape)
        for name, shape in tensors_of(architecture).items()
        if name.startswith("model.language_model.layers.")
        and name.split(".")[-2] in targets
        and name.endswith("weight")
    }


def _all(architecture: Architecture) -> Iterator[Named]:
    yield from _VISION[architecture.family.model_type](architecture)
    yield from _text(architecture)


def _text(architecture: Architecture) -> Iterator[Named]:
    text, prefix = architecture.text, "model.language_model."
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    yield prefix + "embed_tokens.weight", (text.vocabulary, text.hidden)
    for number in range(text.layers):
        layer = f"{prefix}layers.{number}."
        yield from _linear(layer + "self_attn.q_proj", text.hidden, queries, bias=text.qkv_bias)
        yield from _linear(layer + "self_attn.k_proj", text.hidden, keys, bias=text.qkv_bias)
        yield from _linear(layer + "self_attn.v_proj", text.hidden, keys, bias=text.qkv_bias)
        yield from _linear(layer + "self_attn.o_proj", queries, text.hidden, bias=text.out_bias)
        if text.qk_norm:
            yield layer + "self_attn.q_norm.weight", (text.head_dim,)
            yield layer + "self_attn.k_norm.weight", (text.head_dim,)
        yield from _linear(layer + "mlp.gate_proj", text.hidden, text.intermediate, bias=False)
        yield from _linear(layer + "mlp.up_proj", text.hidden, text.intermediate, bias=False)
        yield from _linear(layer + "mlp.down_proj", text.intermediate, text.hidden, bias=False)
        yield layer + "input_layernorm.weight", (text.hidden,)
        yield layer + "post_attention_layernorm.weight", (text.hidden,)
    yield prefix + "norm.weight", (text.hidden,)
    if not text.tied:
        yield "lm_head.weight", (text.vocabulary, text.hidden)


def _qwen2_5_vision(architecture: Architecture) -> Iterator[Named]:
    vision, prefix = architecture.vision, "model.visual."
    yield prefix + "patch_embed.proj.weight", _kernel(vision)
    for number in range(vision.layers):
        block = f"{prefix}blocks.{number}."
        yield block + "norm1.weight", (vision.hidden,)
        yield block + "norm2.weight", (vision.hidden,)
        yield from _linear(block + "attn.qkv", vision.hidden, 3 * vision.hidden)
        yield from _linear(block + "attn.proj", vision.hidden, vision.hidden)
        yield from _linear(block + "mlp.gate_proj", vision.hidden, vision.intermediate)
        yield from _linear(block + "mlp.up_proj", vision.hidden, vision.intermediate)
        yield from _linear(block + "mlp.down_proj", vision.intermediate, vision.hidden)
    merged = vision.hidden * vision.merge**2
    yield prefix + "merger.ln_q.weight", (vision.hidden,)
    yield from _linear(prefix + "merger.mlp.0", merged, merged)
    yield from _linear(prefix + "merger.mlp.2", merged, architecture.text.hidden)


def _qwen3_vision(architecture: Architecture) -> Iterator[Named]:
    vision, prefix = architecture.vision, "model.visual."
    yield prefix + "patch_embed.proj.weight", _kernel(vision)
    yield prefix + "patch_embed.proj.bias", (vision.hidden,)
    yield prefix + "pos_embed.weight", (vision.positions, vision.hidden)
    for number in range(vision.layers):
        block = f"{prefix}blocks.{number}."
        yield from _norm(block + "norm1", vision.hidden)
        yield from _norm(block + "norm2", vision.hidden)
        yield from _linear(block + "attn.qkv", vision.hidden, 3 * vision.hidden)
        yield from _linear(block + "attn.proj", vision.hidden, vision.hidden)
        yield from _linear(block + "mlp.linear_fc1", vision.hidden, vision.intermediate)
        yield from _linear(block + "mlp.linear_fc2", vision.intermediate, vision.hidden)
    merged = vision.hidden * vision.merge**2
    mergers = [("merger", vision.hidden), *((f"deepstack_merger_list.{i}", merged) for i in range(vision.deepstack))]
    for name, normed in mergers:
        yield from _norm(f"{prefix}{name}.norm", normed)
        yield from _linear(f"{prefix}{name}.linear_fc1", merged, merged)
        yield from _linear(f"{prefix}{name}.linear_fc2", merged, architecture.text.hidden)


def _internvl_vision(architecture: Architecture) -> Iterator[Named]:
    vision, prefix = architecture.vision, "model.vision_tower."
    yield prefix + "embeddings.cls_token", (1, 1, vision.hidden)
    if vision.mask_token:
        yield prefix + "embeddings.mask_token", (1, 1, vision.hidden)
    if vision.positions:
        yield prefix + "embeddings.position_embeddings", (1, vision.positions, vision.hidden)
    patch = (vision.hidden, vision.channels, vision.patch, vision.patch)
    yield prefix + "embeddings.patch_embeddings.projection.weight", patch
    yield prefix + "embeddings.patch_embeddings.projection.bias", (vision.hidden,)
    for number in range(vision.layers):
        layer = f"{prefix}encoder.layer.{number}."
        yield layer + "lambda_1", (vision.hidden,)
        yield layer + "lambda_2", (vision.hidden,)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from _linear(layer + "attention." + name, vision.hidden, vision.hidden, bias=vision.attention_bias)
        yield from _linear(layer + "attention.projection_layer", vision.hidden, vision.hidden)
        if vision.qk_norm:
            yield layer + "attention.q_norm.weight", (vision.hidden,)
            yield layer + "attention.k_norm.weight", (vision.hidden,)
        yield from _linear(layer + "mlp.fc1", vision.hidden, vision.intermediate)
        yield from _linear(layer + "mlp.fc2", vision.intermediate, vision.hidden)
        for name in ("layernorm_before", "layernorm_after"):
            yield from _norm(layer + name, vision.hidden, bias=not vision.rms_norm)
    if vision.final_norm:
        yield from _norm(prefix + "layernorm", vision.hidden)
    merged, hidden = vision.hidden * vision.merge**2, architecture.text.hidden
    yield from _norm("model.multi_modal_projector.layer_norm", merged)
    yield from _linear("model.multi_modal_projector.linear_1", merged, hidden)
    yield from _linear("model.multi_modal_projector.linear_2", hidden, hidden)


_VISION = {"qwen2_5_vl": _qwen2_5_vision, "qwen3_vl": _qwen3_vision, "internvl": _internvl_vision}


def _kernel(vision: VisionSizes) -> Shape:
    return (vision.hidden, vision.channels, vision.frames, vision.patch, vision.patch)


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[Named]:
    yield name + ".weight", (outputs, inputs)
    if bias:
        yield name + ".bias", (outputs,)


def _norm(name: str, size: int, *, bias: bool = True) -> Iterator[Named]:
    yield name + ".weight", (size,)
    if bias:
        yield name + ".bias", (size,)
