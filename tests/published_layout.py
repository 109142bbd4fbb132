"""Toy checkpoints in the file layout of the published ones: what stands in which file, under which names.

The published folders are older than the library that reads them. Qwen/Qwen2.5-VL-7B-Instruct keeps the text model's
settings at the top level of config.json and its weights under `visual.` and `model.layers.`; Qwen/Qwen3-VL-8B-Instruct
nests both; OpenGVLab/InternVL3-8B-hf has `language_model.model.`, `language_model.lm_head` and `vision_tower.`. All are
bfloat16 in several shards, with their own output layer, a vocabulary that is not the tokenizer's, a preprocessor file
beside the tokenizer's files, and sampling defaults. Sizes, the vocabulary and the wording of templates differ here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrpo.families import FAMILIES
from mrpo.phantom.toy_models import (
    CHAT_TOKENS,
    INTERNVL_TOKENS,
    MAX_POSITIONS,
    PATCH_SIZE,
    QWEN_VISION_TOKENS,
    RECIPES,
    THINK_TOKENS,
    initialize,
    train_tokenizer,
)

SHARD_BYTES = 1_000_000  # weights of one file
TILE_SIZE = 84  # pixels; InternVL's own is 448
QWEN_PADDING = 39  # rows of the vocabulary beyond the tokenizer

QWEN_BOX_TOKENS = [f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad") for side in ("start", "end")]
QWEN_PLAIN_TOKENS = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>", "<|file_sep|>"]
INTERNVL_BOX_TOKENS = ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How one family is published; functions take the tokenizer, and `schema` the current configuration as a tree."""

    special_tokens: list[str]
    plain_tokens: list[str]
    padding: int  # vocabulary rows of the model minus tokens of the tokenizer
    settings: dict[str, Any]  # changes to the toy's configuration, by section
    schema: Callable[[Any, dict[str, Any]], dict[str, Any]]
    generation: dict[str, Any]
    preprocessor: dict[str, Any]
    system: str  # what the chat template puts first by itself
    image_text: str
    more_files: Callable[[Path, Any, str], None]


def write_published(family: str, folder: Path, *, corpus: Iterable[str], seed: int = 0) -> None:
    """Write a random toy of `family` as its checkpoint is published.

    Args:
        family: a `model_type` of `mrpo.families`.
        folder: created; must not hold a model.
        corpus: texts the tokenizer is trained on.
        seed: of the weights.
    """
    import torch
    import transformers

    published = PUBLISHED[family]
    row, recipe = FAMILIES[family], RECIPES[family]
    recipe = replace(recipe, special_tokens=published.special_tokens, plain_tokens=published.plain_tokens)
    tokenizer = train_tokenizer(recipe, [*corpus, f"user\n<{row.think_tag}>", f"</{row.think_tag}><answer></answer>"])
    config = recipe.config(tokenizer, TILE_SIZE)
    for section, changes in published.settings.items():
        for name, value in changes.items():
            setattr(getattr(config, section), name, value)
    config.text_config.vocab_size = len(tokenizer) + published.padding
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, row.model_class)(config)
        initialize(model)
    folder.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD_BYTES)
    _write_json(folder / "config.json", published.schema(tokenizer, json.loads((folder / "config.json").read_text())))
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    several = {"bos_token_id": pad, "pad_token_id": pad, "do_sample": True, "eos_token_id": [end, pad]}
    generation = several | published.generation if published.generation else {"eos_token_id": end}
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "preprocessor_config.json", published.preprocessor)
    _write_tokenizer(folder, tokenizer)
    published.more_files(folder, tokenizer, _template(published))


def _template(published: Published) -> str:
    """A chat template of the published behaviour; any content with an image key is an image."""
    system = f"<|im_start|>system\\n{published.system}<|im_end|>\\n" if published.system else ""
    first = "{% if messages[0].role != 'system' %}" + system + "{% endif %}" if system else ""
    return (
        first + "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}"
        "{% if part.type == 'image' or 'image' in part %}" + published.image_text + "{% endif %}"
        "{% if 'text' in part %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("\\n", "\n")


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """tokenizer.json, and the vocabulary, merges and added tokens once more as earlier libraries keep them."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    saved = json.loads((folder / "tokenizer.json").read_text())
    _write_json(folder / "vocab.json", saved["model"]["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in saved["added_tokens"]}
    special = [token["content"] for token in saved["added_tokens"] if token["special"]]
    _write_json(folder / "tokenizer_config.json", {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [token for token in special if token != "<|endoftext|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    })  # fmt: skip


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _ids(tokenizer: Any, tokens: dict[str, str]) -> dict[str, int]:
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in tokens.items()}


QWEN_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def _qwen2_5_vl_schema(tokenizer: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """The text model's settings at the top level, beside `vision_config`."""
    text, vision = tree["text_config"], tree["vision_config"]
    names = ("attention_dropout", "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "vocab_size")
    names += ("max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    seen = ("depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size")
    seen += ("spatial_merge_size", "window_size", "fullatt_block_indexes", "temporal_patch_size")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **_ids(tokenizer, {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"}),
        **_ids(tokenizer, QWEN_IDS | {"vision_token_id": "<|vision_pad|>"}),
        **{name: text[name] for name in names},
        "max_window_layers": text["num_hidden_layers"],
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "vision_config": {
            **{name: vision[name] for name in seen},
            "in_chans": 3,
            "spatial_patch_size": vision["patch_size"],
            "tokens_per_second": 2,
        },
    }


def _qwen3_vl_schema(tokenizer: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Nested; `rope_scaling` and `rope_theta` apart, the vision part under the whole model's type, no padding id."""
    text, vision = tree["text_config"], tree["vision_config"]
    rope = text.pop("rope_parameters")
    for name in ("pad_token_id", "tie_word_embeddings"):
        text.pop(name, None)
    vision.pop("rope_parameters", None)
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **_ids(tokenizer, QWEN_IDS),
        "text_config": {
            **text,
            **_ids(tokenizer, {"bos_token_id": "<|endoftext|>"}),
            "dtype": "bfloat16",
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": rope["mrope_section"],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "vision_config": {**vision, "model_type": "qwen3_vl"},
    }


def _internvl_schema(tokenizer: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Nested, with the stretched rotary positions that reach beyond `max_position_embeddings` and count only there."""
    text = tree["text_config"]
    for name in ("rope_parameters", "pad_token_id", "layer_types", "tie_word_embeddings"):
        text.pop(name, None)
    del tree["dtype"], tree["tie_word_embeddings"]
    return {
        **tree,
        "text_config": {
            **text,
            "architectures": ["Qwen2ForCausalLM"],
            **_ids(tokenizer, {"bos_token_id": "<|endoftext|>"}),
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
    }


def _no_more(folder: Path, tokenizer: Any, template: str) -> None:
    """Both Qwen families: the template in a JSON file of its own and in the tokenizer's."""
    _write_json(folder / "chat_template.json", {"chat_template": template})
    file = folder / "tokenizer_config.json"
    _write_json(file, json.loads(file.read_text()) | {"chat_template": template})


def _qwen3_vl_files(folder: Path, tokenizer: Any, template: str) -> None:
    _no_more(folder, tokenizer, template)
    video = {key: value for key, value in PUBLISHED["qwen3_vl"].preprocessor.items() if key != "image_processor_type"}
    _write_json(folder / "video_preprocessor_config.json", video | {"video_processor_type": "Qwen3VLVideoProcessor"})


def _internvl_files(folder: Path, tokenizer: Any, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    sequence = (TILE_SIZE // (2 * PATCH_SIZE)) ** 2
    _write_json(
        folder / "processor_config.json", {"image_seq_length": sequence, "processor_class": "InternVLProcessor"}
    )
    _write_json(folder / "added_tokens.json", tokenizer.get_added_vocab())
    _write_json(folder / "special_tokens_map.json", {
        **INTERNVL_TOKENS,
        "additional_special_tokens": PUBLISHED["internvl"].special_tokens,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    })  # fmt: skip
    file = folder / "tokenizer_config.json"
    more = {**INTERNVL_TOKENS, "extra_special_tokens": INTERNVL_TOKENS, "processor_class": "InternVLProcessor"}
    _write_json(file, json.loads(file.read_text()) | more)


QWEN_PATCHES = {"temporal_patch_size": 2, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"}

PUBLISHED: dict[str, Published] = {
    "qwen2_5_vl": Published(
        special_tokens=[*CHAT_TOKENS, *QWEN_BOX_TOKENS, *QWEN_VISION_TOKENS],
        plain_tokens=QWEN_PLAIN_TOKENS,
        padding=QWEN_PADDING,
        settings={"text_config": {"rms_norm_eps": 1e-6}},
        schema=_qwen2_5_vl_schema,
        generation={"repetition_penalty": 1.05, "temperature": 0.000001, "transformers_version": "4.49.0"},
        preprocessor={
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": PATCH_SIZE,
            **CLIP,
            **QWEN_PATCHES,
            "processor_class": "Qwen2_5_VLProcessor",
        },
        system="You are a helpful assistant.",
        image_text=QWEN_IMAGE,
        more_files=_no_more,
    ),
    "qwen3_vl": Published(
        special_tokens=[*CHAT_TOKENS, *QWEN_BOX_TOKENS, *QWEN_VISION_TOKENS],
        plain_tokens=[*QWEN_PLAIN_TOKENS, "<tool_response>", "</tool_response>", *THINK_TOKENS],
        padding=QWEN_PADDING,
        settings={"vision_config": {"patch_size": 16}},
        schema=_qwen3_vl_schema,
        generation={"top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0},
        preprocessor={
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "patch_size": 16,
            **HALF,
            **QWEN_PATCHES,
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        system="",
        image_text=QWEN_IMAGE,
        more_files=_qwen3_vl_files,
    ),
    "internvl": Published(
        # The video token came last and has no row of its own in the model.
        special_tokens=[
            *CHAT_TOKENS,
            *QWEN_BOX_TOKENS,
            *QWEN_VISION_TOKENS,
            *(token for name, token in INTERNVL_TOKENS.items() if name != "video_token"),
            *INTERNVL_BOX_TOKENS,
            INTERNVL_TOKENS["video_token"],
        ],
        plain_tokens=[],
        padding=-1,
        settings={"vision_config": {"layer_scale_init_value": 0.1}},
        schema=_internvl_schema,
        generation={},
        preprocessor={
            "crop_to_patches": False,
            "data_format": "channels_first",
            "default_to_square": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            **IMAGENET,
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "max_patches": 12,
            "min_patches": 1,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": TILE_SIZE, "width": TILE_SIZE},
        },
        system="",
        image_text="<IMG_CONTEXT>\n",
        more_files=_internvl_files,
    ),
}
