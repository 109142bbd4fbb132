"""Toy models of the real families: about a million random parameters in the architecture, processor, chat template
and file layout of the real checkpoints, so that everything after this module treats them like the real ones.

The tokenizer is a byte-level BPE trained on the corpus the model will speak. The vocabulary ends with the tokenizer's
last token: real checkpoints pad theirs, and an untrained model samples from such a tail ids that decode to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.errors import ConfigError
from mrpo.families import family_of

MAX_VOCAB_SIZE = 1024  # enough for every word of a small world to be one token
HIDDEN_SIZE = 128
NUM_LAYERS = 3
VISION_HIDDEN_SIZE = 96
VISION_DEPTH = 2
PATCH_SIZE = 14
MERGE_SIZE = 2
MAX_POSITIONS = 4096
MROPE_SECTION = [4, 6, 6]  # temporal, height, width; half of the head dimension

CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
THINK_TOKENS = ["<think>", "</think>"]

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '@IMAGE@' }}{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the toy of one family is made; `config` and `processor` take the tokenizer and the image size in pixels."""

    special_tokens: list[str]
    plain_tokens: list[str]  # whole tokens that decoding keeps
    named_tokens: dict[str, str]
    image_text: str  # what the chat template writes for one image
    config: Callable[[Any, int], Any]
    processor: Callable[[Any, int, str], Any]


def build_toy_model(family: str, folder: Path, *, corpus: Iterable[str], seed: int = 0, image_size: int = 84) -> None:
    """Write a complete Hugging Face folder of a random-weight toy model.

    Args:
        family: a `model_type` of `mrpo.families`.
        folder: created if missing; files of the same names are replaced.
        corpus: texts the tokenizer is trained on. Byte-level, so that any other text can be written too.
        seed: of the weights; the same arguments give the same files.
        image_size: pixels of a square image that is not resized. A multiple of 28; (image_size / 28)² image tokens.

    Raises:
        ConfigError: an unknown family, or an image size that is not a multiple of 28.
    """
    import torch
    from transformers import GenerationConfig

    row = family_of(family)
    unit = PATCH_SIZE * MERGE_SIZE
    if image_size < unit or image_size % unit:
        raise ConfigError(f"image_size={image_size} must be a positive multiple of {unit} (patch × merge)")
    recipe = RECIPES[family]
    tokenizer = train_tokenizer(recipe, [*corpus, *_framing(row.think_tag)])
    config = recipe.config(tokenizer, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model_class(row.model_class)(config).float()
        initialize(model)
    model.generation_config = GenerationConfig(
        eos_token_id=_id(tokenizer, row.end_of_turn), pad_token_id=_id(tokenizer, "<|endoftext|>"), do_sample=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    template = CHAT_TEMPLATE.replace("@IMAGE@", recipe.image_text)
    recipe.processor(tokenizer, image_size, template).save_pretrained(folder)


def _framing(think_tag: str) -> list[str]:
    """Texts around every question and answer; repeated, because the trainer merges only what occurs twice."""
    tags = f"<{think_tag}></{think_tag}><answer></answer>"
    return [f"user\n{tags}", f"assistant\n{tags}"] * 2


def _model_class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def train_tokenizer(recipe: Recipe, corpus: list[str]) -> Any:
    """A `Qwen2Tokenizer` (all three families use it) with merges learned from `corpus`."""
    import json

    from tokenizers import AddedToken, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE - len(recipe.special_tokens) - len(recipe.plain_tokens),
        min_frequency=2,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    blank = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    blank.train_from_iterator(corpus, trainer=trainer)
    learned = json.loads(blank.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=recipe.named_tokens,
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in recipe.special_tokens])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in recipe.plain_tokens])
    return tokenizer


def initialize(model: Any) -> None:
    """Keep the variance of activations: at 128 units the families' usual 0.02 leaves layers nearly silent."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def _text_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": _id(tokenizer, "<|im_end|>"),
        "pad_token_id": _id(tokenizer, "<|endoftext|>"),
    }


def _qwen_vision_sizes() -> dict[str, Any]:
    return {
        "depth": VISION_DEPTH,
        "hidden_size": VISION_HIDDEN_SIZE,
        "intermediate_size": 2 * VISION_HIDDEN_SIZE,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "out_hidden_size": HIDDEN_SIZE,
    }


def _qwen_token_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
    }


def _qwen_pixels(image_size: int) -> dict[str, Any]:
    """Every image, a radiograph of a thousand pixels too, is brought to about the toy's own number of patches."""
    return {
        "size": {"shortest_edge": image_size**2, "longest_edge": image_size**2},
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
    }


def _qwen2_5_vl_config(tokenizer: Any, image_size: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": MROPE_SECTION}
    return Qwen2_5_VLConfig(
        text_config={**_text_sizes(tokenizer), "rope_parameters": rope},
        vision_config={**_qwen_vision_sizes(), "fullatt_block_indexes": [VISION_DEPTH - 1]},
        tie_word_embeddings=True,
        **_qwen_token_ids(tokenizer),
    )


def _qwen2_5_vl_processor(tokenizer: Any, image_size: int, template: str) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = _qwen_pixels(image_size)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=template,
    )


def _qwen3_vl_config(tokenizer: Any, image_size: int) -> Any:
    from transformers import Qwen3VLConfig

    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": MROPE_SECTION,
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config={**_text_sizes(tokenizer), "head_dim": HIDDEN_SIZE // 4, "rope_parameters": rope},
        vision_config={
            **_qwen_vision_sizes(),
            "num_position_embeddings": (image_size // PATCH_SIZE) ** 2,
            "deepstack_visual_indexes": list(range(VISION_DEPTH)),
        },
        tie_word_embeddings=True,
        **_qwen_token_ids(tokenizer),
    )


def _qwen3_vl_processor(tokenizer: Any, image_size: int, template: str) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    pixels = _qwen_pixels(image_size)
    half = [0.5, 0.5, 0.5]
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels, image_mean=half, image_std=half),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=template,
    )


def _internvl_config(tokenizer: Any, image_size: int) -> Any:
    from transformers import InternVLConfig

    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return InternVLConfig(
        text_config={"model_type": "qwen2", **_text_sizes(tokenizer), "rope_parameters": rope},
        vision_config={
            "hidden_size": VISION_HIDDEN_SIZE,
            "num_hidden_layers": VISION_DEPTH,
            "num_attention_heads": 4,
            "intermediate_size": 2 * VISION_HIDDEN_SIZE,
            "attention_bias": True,
            "image_size": [image_size, image_size],
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
            "layer_scale_init_value": 1.0,
        },
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=_internvl_image_tokens(image_size),
        downsample_ratio=1 / MERGE_SIZE,
        tie_word_embeddings=True,
    )


def _internvl_image_tokens(image_size: int) -> int:
    return (image_size // (PATCH_SIZE * MERGE_SIZE)) ** 2


def _internvl_processor(tokenizer: Any, image_size: int, template: str) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": image_size, "width": image_size}
    return InternVLProcessor(
        # One tile: the processor's own default cuts an image into up to twelve.
        image_processor=GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=1),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=_internvl_image_tokens(image_size),
        chat_template=template,
    )


QWEN_IMAGE_TEXT = "<|vision_start|><|image_pad|><|vision_end|>"

RECIPES: dict[str, Recipe] = {
    "qwen2_5_vl": Recipe(
        special_tokens=[*CHAT_TOKENS, *QWEN_VISION_TOKENS],
        plain_tokens=[],
        named_tokens={},
        image_text=QWEN_IMAGE_TEXT,
        config=_qwen2_5_vl_config,
        processor=_qwen2_5_vl_processor,
    ),
    "qwen3_vl": Recipe(
        special_tokens=[*CHAT_TOKENS, *QWEN_VISION_TOKENS],
        plain_tokens=THINK_TOKENS,
        named_tokens={},
        image_text=QWEN_IMAGE_TEXT,
        config=_qwen3_vl_config,
        processor=_qwen3_vl_processor,
    ),
    "internvl": Recipe(
        special_tokens=[*CHAT_TOKENS, *INTERNVL_TOKENS.values()],
        plain_tokens=[],
        named_tokens=INTERNVL_TOKENS,
        image_text="<IMG_CONTEXT>\n",
        config=_internvl_config,
        processor=_internvl_processor,
    ),
}
