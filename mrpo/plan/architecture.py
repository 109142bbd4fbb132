"""The sizes of a model, read from its `config.json`, from the facts in `conf/architecture/`, or from a toy's recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import conf
from mrpo.checkpoint_checks import CONFIG_FILE, model_type_of
from mrpo.config import ModelConfig
from mrpo.errors import ConfigError, DataError
from mrpo.families import PROCESSOR_FILES, Family, family_of
from mrpo.weight_files import ties_embeddings

FACTS = Path(conf.__file__).parent / "architecture"
TOY_IMAGE_SIZE = 84  # pixels a side, as `build_toy_model` has it
DEFAULT_MAX_TILES = 12  # of transformers' InternVL processor, where a checkpoint names none


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSizes:
    """The language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool  # the head is the embedding
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool  # an RMS norm on each head of queries and keys


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSizes:
    """The vision tower and what brings its features to the language model."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    channels: int
    patch: int  # pixels a side
    frames: int  # of a patch
    merge: int  # patches a side that become one image token
    tile: int | None  # pixels a side of a tile; None: the whole image goes through at its own size
    positions: int  # learned ones
    deepstack: int  # intermediate layers whose features reach the language model too
    attention_bias: bool = True
    qk_norm: bool = False
    mask_token: bool = False
    final_norm: bool = False
    rms_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything about a model that memory depends on. Made by `architecture_of`."""

    family: Family
    text: TextSizes
    vision: VisionSizes
    max_pixels: int | None  # above which the processor itself scales an image down; None: it cuts tiles
    min_pixels: int
    max_tiles: int | None  # by default; None: no tiles
    source: str  # where the sizes were read


def architecture_of(model: ModelConfig) -> Architecture:
    """The sizes of the policy of a run; reads local files at most.

    Raises:
        ConfigError: neither a toy, a folder, a model of `conf/architecture/` nor one in the hub's local cache; an
            unsupported family; a size is missing.
    """
    if model.path is None:
        return _toy(model)
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        facts = published(model.path)
        if facts is not None:
            return facts
        folder = _cached_folder(model)
    return read_folder(folder)


def published(hub_id: str) -> Architecture | None:
    """A model whose facts are written down; None where they are not."""
    for file in sorted(FACTS.glob("*.yaml")):
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
        if hub_id in facts["hub_ids"]:
            return from_config(facts, processor=facts["processor"], source=f"conf/architecture/{file.name}")
    return None


def published_ids() -> list[str]:
    """All models whose facts are written down."""
    return [
        hub_id
        for file in sorted(FACTS.glob("*.yaml"))
        for hub_id in yaml.safe_load(file.read_text(encoding="utf-8"))["hub_ids"]
    ]


def read_folder(folder: Path) -> Architecture:
    """The sizes of a checkpoint on this machine.

    A saved configuration leaves out what transformers has as default, so transformers reads it.

    Raises:
        ConfigError: no readable `config.json`, an unsupported family, or nothing says whether the output layer is the
            embedding.
    """
    family_of(model_type_of(folder), folder)
    from transformers import AutoConfig

    file = folder / CONFIG_FILE
    try:
        filled = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"transformers cannot read {file}: {reason}; give model.path a complete checkpoint") from None
    try:
        filled["tie_word_embeddings"] = ties_embeddings(folder)
    except DataError as error:
        raise ConfigError(
            f"{file} does not say tie_word_embeddings, and no weights here tell ({error}); add it, or bring the weights"
        ) from None
    return from_config(filled, processor=_processor_limits(folder), source=str(file))


def from_config(config: Mapping[str, Any], *, processor: Mapping[str, Any], source: str) -> Architecture:
    """Sizes from the content of a `config.json`.

    Args:
        config: with all keys that the family's memory depends on.
        processor: `min_pixels` and `max_pixels`, or `max_tiles`, as far as a checkpoint names them.
        source: for messages.

    Raises:
        ConfigError: an unsupported family, or a size is missing.
    """
    family = family_of(config["model_type"])
    try:
        text = _text(config["text_config"], tied=bool(config["tie_word_embeddings"]), family=family)
        vision = _VISION[family.model_type](config)
    except KeyError as error:
        raise ConfigError(f"{source} has no {error.args[0]}; give model.path a complete checkpoint") from None
    factor = vision.patch * vision.merge
    return Architecture(
        family=family,
        text=text,
        vision=vision,
        max_pixels=None if vision.tile else int(processor.get("max_pixels", 16384 * factor**2)),
        min_pixels=0 if vision.tile else int(processor.get("min_pixels", 4 * factor**2)),
        max_tiles=int(processor.get("max_tiles", DEFAULT_MAX_TILES)) if vision.tile else None,
        source=source,
    )


def _text(text: Mapping[str, Any], *, tied: bool, family: Family) -> TextSizes:
    qwen3 = family.model_type == "qwen3_vl"
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return TextSizes(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=head_dim,
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=tied,
        # Qwen2's queries, keys and values have a bias whatever its configuration says; Qwen3's ask it.
        qkv_bias=not qwen3 or bool(text["attention_bias"]),
        out_bias=qwen3 and bool(text["attention_bias"]),
        qk_norm=qwen3,
    )


def _qwen_vision(config: Mapping[str, Any]) -> VisionSizes:
    vision = config["vision_config"]
    qwen3 = config["model_type"] == "qwen3_vl"
    return VisionSizes(
        hidden=vision["hidden_size"],
        layers=vision["depth"],
        heads=vision["num_heads"],
        intermediate=vision["intermediate_size"],
        channels=vision["in_channels"],
        patch=vision["patch_size"],
        frames=vision["temporal_patch_size"],
        merge=vision["spatial_merge_size"],
        tile=None,
        positions=vision["num_position_embeddings"] if qwen3 else 0,
        deepstack=len(vision["deepstack_visual_indexes"]) if qwen3 else 0,
        rms_norm=not qwen3,
    )


def _internvl_vision(config: Mapping[str, Any]) -> VisionSizes:
    vision = config["vision_config"]
    (tile, _), (patch, _) = vision["image_size"], vision["patch_size"]
    return VisionSizes(
        hidden=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        intermediate=vision["intermediate_size"],
        channels=vision["num_channels"],
        patch=patch,
        frames=1,
        merge=round(1 / config["downsample_ratio"]),
        tile=tile,
        positions=(tile // patch) ** 2 + 1 if vision["use_absolute_position_embeddings"] else 0,
        deepstack=0,
        attention_bias=vision["attention_bias"],
        qk_norm=vision["use_qk_norm"],
        mask_token=vision["use_mask_token"],
        final_norm=not vision["use_mean_pooling"],
        rms_norm=vision["norm_type"] == "rms_norm",
    )


_VISION = {"qwen2_5_vl": _qwen_vision, "qwen3_vl": _qwen_vision, "internvl": _internvl_vision}


def _toy(model: ModelConfig) -> Architecture:
    from mrpo.phantom.toy_models import MAX_VOCAB_SIZE, RECIPES

    name = model.toy_family.value
    config = RECIPES[name].config(_Words(MAX_VOCAB_SIZE), TOY_IMAGE_SIZE).to_dict()
    pixels = TOY_IMAGE_SIZE**2
    limits = {"min_pixels": pixels, "max_pixels": pixels, "max_tiles": 1}
    return from_config(config, processor=limits, source=f"toy {name}")


@dataclass(frozen=True, slots=True)
class _Words:
    """As much of a tokenizer as a toy's configuration asks for: the toy's own is trained when it is built."""

    size: int

    def __len__(self) -> int:
        return self.size

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0


def _cached_folder(model: ModelConfig) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    assert model.path is not None
    try:
        file = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except HFValidationError:
        file = None
    if isinstance(file, str):
        return Path(file).parent
    raise ConfigError(
        f"model.path={model.path} is no folder here, and its sizes are not written down; make plan asks no network: "
        f"give the folder of a checkpoint (its config.json is enough), or one of {', '.join(published_ids())}"
    )


def _processor_limits(folder: Path) -> dict[str, int]:
    """What the checkpoint's own image processor is set to, as far as its files say."""
    limits: dict[str, int] = {}
    for name in PROCESSOR_FILES:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # the run's own loading says what is wrong with it; the defaults hold until then
        settings = content.get("image_processor", content)
        size = settings.get("size") or {}
        for ours, theirs in (
            ("min_pixels", (settings.get("min_pixels"), size.get("shortest_edge"))),
            ("max_pixels", (settings.get("max_pixels"), size.get("longest_edge"))),
            ("max_tiles", (settings.get("max_patches"),)),
        ):
            value = next((item for item in theirs if item), None)
            if value is not None:
                limits[ours] = int(value)
    return limits
