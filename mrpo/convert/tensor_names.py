"""The two layouts' tensor names: which tensors each has, and how one becomes the other.

The custom layout fuses query, key and value of the vision tower into one tensor, rows of the query first; everything
else differs in its name alone. Source: the modules of `InternVLForConditionalGeneration` in transformers and of
`InternVLChatModel` in vLLM, which load the one and the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

QKV = ("q_proj", "k_proj", "v_proj")
TEXT_LAYER = (
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.v_proj.weight",
)
PROJECTOR = {"mlp1.0": "layer_norm", "mlp1.1": "linear_1", "mlp1.3": "linear_2"}
VISION_MODULES = {  # of one layer; each has a weight and a bias
    "attn.proj": "attention.projection_layer",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
VISION_EMBEDDINGS = {
    "class_embedding": "cls_token",
    "patch_embedding.bias": "patch_embeddings.projection.bias",
    "patch_embedding.weight": "patch_embeddings.projection.weight",
    "position_embedding": "position_embeddings",
}
HEAD = "language_model.lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides which tensors an InternVL has."""

    num_vision_layers: int
    num_text_layers: int
    qkv_bias: bool
    qk_norm: bool
    rms_norm: bool  # vision norms without bias
    tied: bool  # the head may share the embeddings' tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One tensor of the custom layout and what it is in the native one."""

    custom: str
    native: tuple[str, ...]  # several: cut along dimension 0 into equal parts
    optional: bool = False


def pairs(shape: Shape) -> Iterator[Pair]:
    """Every tensor of an InternVL, in the order in which a file holds them."""
    text = "language_model.model"
    yield _same(f"{text}.embed_tokens.weight")
    for layer in range(shape.num_text_layers):
        for name in TEXT_LAYER:
            yield _same(f"{text}.layers.{layer}.{name}")
    yield _same(f"{text}.norm.weight")
    yield Pair(custom=HEAD, native=(HEAD,), optional=shape.tied)
    for custom, native in PROJECTOR.items():
        for kind in ("bias", "weight"):
            yield Pair(custom=f"{custom}.{kind}", native=(f"multi_modal_projector.{native}.{kind}",))
    for custom, native in VISION_EMBEDDINGS.items():
        yield Pair(custom=f"vision_model.embeddings.{custom}", native=(f"vision_tower.embeddings.{native}",))
    for layer in range(shape.num_vision_layers):
        yield from _vision_layer(shape, f"vision_model.encoder.layers.{layer}", f"vision_tower.encoder.layer.{layer}")


def _same(name: str) -> Pair:
    return Pair(custom=name, native=(name,))


def _vision_layer(shape: Shape, custom: str, native: str) -> Iterator[Pair]:
    for kind in ("bias", "weight") if shape.qkv_bias else ("weight",):
        parts = tuple(f"{native}.attention.{part}.{kind}" for part in QKV)
        yield Pair(custom=f"{custom}.attn.qkv.{kind}", native=parts)
    if shape.qk_norm:
        for norm in ("q_norm", "k_norm"):
            yield Pair(custom=f"{custom}.attn.{norm}.weight", native=(f"{native}.attention.{norm}.weight",))
    for ours, theirs in VISION_MODULES.items():
        for kind in ("weight",) if shape.rms_norm and ours.startswith("norm") else ("bias", "weight"):
            yield Pair(custom=f"{custom}.{ours}.{kind}", native=(f"{native}.{theirs}.{kind}",))
    for number in (1, 2):
        yield Pair(custom=f"{custom}.ls{number}", native=(f"{native}.lambda_{number}",))


def saved_name(name: str) -> str:
    """The published spelling of a native name; checkpoints that transformers 4.52 to 4.57 saved begin with `model.`."""
    for live, saved in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(live):
            return saved + name.removeprefix(live)
    return name
