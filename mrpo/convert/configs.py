"""`config.json` of the two layouts, each made from the other.

Sources: the fields that transformers' `InternVLConfig` and vLLM's `InternVLChatModel` read, and the published
InternVL3 checkpoints of both layouts.
"""

from __future__ import annotations

from typing import Any

from mrpo.convert.tensor_names import Shape
from mrpo.errors import ConfigError
from mrpo.families import CUSTOM_LAYOUT

Tree = dict[str, Any]

NATIVE_LAYOUT = "internvl"
TEXT_MODEL = "qwen2"
TEXT_FIELDS = (
    "attention_dropout",
    "bos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "sliding_window",
    "use_sliding_window",
    "vocab_size",
)  # which both layouts spell alike
VISION_FIELDS = {  # custom: native
    "attention_dropout": "attention_dropout",
    "dropout": "hidden_dropout_prob",
    "hidden_act": "hidden_act",
    "hidden_size": "hidden_size",
    "initializer_factor": "layer_scale_init_value",
    "initializer_range": "initializer_range",
    "intermediate_size": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type",
    "num_attention_heads": "num_attention_heads",
    "num_channels": "num_channels",
    "num_hidden_layers": "num_hidden_layers",
    "qk_normalization": "use_qk_norm",
    "qkv_bias": "attention_bias",
}
MODEL = "only InternVL3 checkpoints with a Qwen2 language model are converted"


def native_config(custom: Tree, *, image_token_id: int, end_of_turn_id: int) -> Tree:
    """The native `config.json`.

    Args:
        custom: `config.json` of the custom layout.
        image_token_id: of `<IMG_CONTEXT>`, which the custom layout's code looks up when it runs.
        end_of_turn_id: of `<|im_end|>`; the published `llm_config` names the end of the text instead, which no chat
            turn ends with.

    Raises:
        ConfigError: something the native architecture does not do.
    """
    text, vision = _section(custom, "llm_config"), _section(custom, "vision_config")
    _refuse_unsupported(custom, text, vision)
    tied = bool(text.get("tie_word_embeddings", False))
    size = _required(vision, "image_size", "vision_config")
    patch = _required(vision, "patch_size", "vision_config")
    ratio = float(_required(custom, "downsample_ratio"))
    new_text = {name: text[name] for name in (*TEXT_FIELDS, "rope_theta", "rope_scaling") if name in text}
    new_vision = {native: vision[name] for name, native in VISION_FIELDS.items() if name in vision}
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": NATIVE_LAYOUT,
        "downsample_ratio": ratio,
        "dtype": custom.get("dtype") or custom.get("torch_dtype") or "bfloat16",
        "image_seq_length": image_tokens(size, patch, ratio),
        "image_token_id": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied,
        "text_config": {
            **new_text,
            "model_type": TEXT_MODEL,
            "architectures": ["Qwen2ForCausalLM"],
            "eos_token_id": end_of_turn_id,
            "tie_word_embeddings": tied,
            "use_cache": True,
        },
        "vision_config": {
            **new_vision,
            "model_type": "internvl_vision",
            "architectures": ["InternVLVisionModel"],
            "image_size": [size, size],
            "patch_size": [patch, patch],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,  # no norm after the last layer
        },
    }


def _refuse_unsupported(custom: Tree, text: Tree, vision: Tree) -> None:
    """What the native classes compute otherwise, or not at all."""
    tiled = custom.get("dynamic_image_size", True) and custom.get("max_dynamic_patch", 12) != 1
    forced = custom.get("force_image_size")
    expected: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("llm_config.model_type", text.get("model_type"), (TEXT_MODEL,)),
        ("ps_version", custom.get("ps_version"), ("v2",)),
        ("select_layer", custom.get("select_layer", -1), (-1,)),
        ("pad2square", custom.get("pad2square", False), (False,)),
        ("force_image_size", forced, (None, vision.get("image_size"))),
        ("vision_config.norm_type", vision.get("norm_type", "layer_norm"), ("layer_norm", "rms_norm")),
        ("use_thumbnail", custom.get("use_thumbnail", True), (True,) if tiled else (True, False)),
        ("quantization_config", custom.get("quantization_config"), (None,)),
        ("llm_config.quantization_config", text.get("quantization_config"), (None,)),
    ]
    for name, found, allowed in expected:
        if found not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise ConfigError(f"config.json: {name}={found!r} instead of {wanted}; {MODEL}")


def custom_config(native: Tree, images: Tree, *, has_head: bool, template: str = "internvl2_5") -> Tree:
    """A `config.json` of the custom layout, without pointers to code.

    Args:
        native: the native `config.json`.
        images: settings of the native image processor.
        has_head: the weights hold an output layer; decides whether it is the embeddings' where the config is silent, as
            that of OpenGVLab/InternVL3-8B-hf is.
        template: the conversation template that the layout's own code is to use.

    Raises:
        ConfigError: something the custom layout does not do.
    """
    text, vision = _section(native, "text_config"), _section(native, "vision_config")
    for name, found, wanted in (
        ("text_config.model_type", text.get("model_type"), TEXT_MODEL),
        ("vision_feature_layer", native.get("vision_feature_layer", -1), -1),
    ):
        if found != wanted:
            raise ConfigError(f"config.json: {name}={found!r} instead of {wanted!r}; {MODEL}")
    size, patch = _side(vision, "image_size"), _side(vision, "patch_size")
    max_tiles = int(images.get("max_patches", 12)) if images.get("crop_to_patches", True) else 1
    tied = bool(native.get("tie_word_embeddings", text.get("tie_word_embeddings", not has_head)))
    dtype = native.get("dtype") or native.get("torch_dtype") or "bfloat16"
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": CUSTOM_LAYOUT,
        "downsample_ratio": native.get("downsample_ratio", 0.5),
        "dynamic_image_size": True,
        "force_image_size": size,
        "max_dynamic_patch": max_tiles,
        "min_dynamic_patch": min(int(images.get("min_patches", 1)), max_tiles),
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_thumbnail": True,
        "llm_config": {
            **{name: text[name] for name in TEXT_FIELDS if name in text},
            **_legacy_rope(text),
            "architectures": ["Qwen2ForCausalLM"],
            "eos_token_id": text.get("eos_token_id"),
            "model_type": TEXT_MODEL,
            "tie_word_embeddings": tied,
            "torch_dtype": dtype,
        },
        "vision_config": {
            **{custom: vision[name] for custom, name in VISION_FIELDS.items() if name in vision},
            "architectures": ["InternVisionModel"],
            "drop_path_rate": 0.0,
            "image_size": size,
            "model_type": "intern_vit_6b",
            "patch_size": patch,
            "torch_dtype": dtype,
        },
    }


def _legacy_rope(text: Tree) -> Tree:
    """Rotary settings as transformers 4 spells them, which the layout's own code was written for."""
    if "rope_parameters" not in text:
        return {name: text[name] for name in ("rope_theta", "rope_scaling") if name in text}
    rope = dict(text["rope_parameters"])
    theta = rope.pop("rope_theta")
    return {"rope_theta": theta, "rope_scaling": None if rope.get("rope_type") == "default" else rope}


def shape_of_custom(custom: Tree) -> Shape:
    """What tensors a checkpoint of the custom layout has."""
    text, vision = _section(custom, "llm_config"), _section(custom, "vision_config")
    return _shape(text, vision, bias="qkv_bias", norm="qk_normalization", tied=text.get("tie_word_embeddings", False))


def shape_of_native(native: Tree) -> Shape:
    """What tensors a native checkpoint has."""
    text, vision = _section(native, "text_config"), _section(native, "vision_config")
    tied = native.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    return _shape(text, vision, bias="attention_bias", norm="use_qk_norm", tied=tied)


def _shape(text: Tree, vision: Tree, *, bias: str, norm: str, tied: object) -> Shape:
    return Shape(
        num_vision_layers=int(_required(vision, "num_hidden_layers", "vision_config")),
        num_text_layers=int(_required(text, "num_hidden_layers", "its language model")),
        qkv_bias=bool(_required(vision, bias, "vision_config")),
        qk_norm=bool(_required(vision, norm, "vision_config")),
        rms_norm=vision.get("norm_type", "layer_norm") == "rms_norm",
        tied=bool(tied),
    )


def image_tokens(size: int, patch: int, ratio: float) -> int:
    """Tokens of one tile: 256 for 448 pixels, patches of 14 and a ratio of ½."""
    return int((size // patch) ** 2 * ratio**2)


def _side(section: Tree, name: str) -> int:
    value = _required(section, name, "vision_config")
    sides = value if isinstance(value, list) else [value]
    if len(set(sides)) != 1:
        raise ConfigError(f"config.json: vision_config.{name}={value} is not square; {MODEL}")
    return int(sides[0])


def _section(tree: Tree, name: str) -> Tree:
    section = tree.get(name)
    if not isinstance(section, dict):
        raise ConfigError(f"config.json has no {name}; {MODEL}")
    return section


def _required(tree: Tree, name: str, place: str = "") -> Any:
    if tree.get(name) is None:
        raise ConfigError(f"config.json: {place}{'.' if place else ''}{name} is missing; {MODEL}")
    return tree[name]
