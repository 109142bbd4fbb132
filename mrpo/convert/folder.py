"""A whole checkpoint folder, from one layout to the other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.atomic import TEMPORARY_SUFFIX, commit_folder
from mrpo.checkpoint_checks import CONFIG_FILE, check_checkpoint, model_type_of
from mrpo.convert.configs import custom_config, native_config, shape_of_custom, shape_of_native
from mrpo.convert.plan import NewTensor, to_custom, to_native
from mrpo.convert.processors import END_OF_TURN, IMAGE_TOKENS, generation_settings, native_processor, native_tokenizer
from mrpo.convert.tensor_names import HEAD, pairs, saved_name
from mrpo.convert.writer import FILE_BYTES, write_weights
from mrpo.errors import ConfigError, ResourceError
from mrpo.families import CUSTOM_LAYOUT, FAMILIES
from mrpo.weight_files import INDEX_FILE, read_json, read_tensors

NATIVE_LAYOUT = "internvl"
KEPT_FOLDER = "custom_layout"  # inside the native folder: the files that the way back cannot derive
GENERATION_CONFIG = "generation_config.json"
DESCRIPTIONS = ("*.json", "*.txt", "*.jinja")  # all of a folder that is neither weights nor code
DOCUMENTS = ("LICENSE*", "NOTICE*", "README.md")
NATIVE_ONLY = ("chat_template.jinja", "chat_template.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What will be written; made from headers and settings alone."""

    source: Path
    to_native: bool
    tensors: list[NewTensor]

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def plan_conversion(source: Path) -> Conversion:
    """Look at a checkpoint and decide on the direction by its model type.

    Raises:
        ConfigError: neither layout of InternVL, or an InternVL that one of them cannot express.
        DataError: damaged weights, missing or unknown tensors.
    """
    model_type = model_type_of(source)
    if model_type not in (CUSTOM_LAYOUT, NATIVE_LAYOUT):
        raise ConfigError(
            f"{source} is of model type {model_type!r}; only InternVL has two layouts ({CUSTOM_LAYOUT!r} and "
            f"{NATIVE_LAYOUT!r}), other checkpoints are used as they are"
        )
    config = read_json(source / CONFIG_FILE)
    if model_type == CUSTOM_LAYOUT:
        native_config(config, image_token_id=0, end_of_turn_id=0)  # refuses what has no native form
        tensors = to_native(pairs(shape_of_custom(config)), read_tensors(source))
    else:
        check_checkpoint(source)
        _kept_or_derived(source, config)
        tensors = to_custom(pairs(shape_of_native(config)), read_tensors(source))
    return Conversion(source=source, to_native=model_type == CUSTOM_LAYOUT, tensors=tensors)


def convert(
    conversion: Conversion,
    out: Path,
    *,
    file_bytes: int = FILE_BYTES,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write the folder; it appears whole or not at all.

    Args:
        conversion: from `plan_conversion`.
        out: a folder that does not exist yet.
        file_bytes: weights of one file.
        progress: told the number of bytes of weights as they are written.

    Raises:
        ConfigError: `out` exists, or the tokenizer does not fit.
        ResourceError: it cannot be written there.
    """
    if out.exists():
        raise ConfigError(f"OUT={out} exists already; give a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < conversion.num_bytes:
            raise ResourceError(
                f"OUT={out} has {free / 1024**3:.1f} GiB of free space, the weights take "
                f"{conversion.num_bytes / 1024**3:.1f} GiB; choose another disk"
            )
        describe = _describe_native if conversion.to_native else _describe_custom
        describe(conversion.source, temporary)
        write_weights(temporary, conversion.tensors, file_bytes=file_bytes, progress=progress)
        if conversion.to_native:
            check_checkpoint(temporary)
        commit_folder(temporary, out)
    except OSError as error:
        raise ResourceError(f"OUT={out} cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _describe_native(source: Path, target: Path) -> None:
    """All files but the weights of the native folder."""
    config = read_json(source / CONFIG_FILE)
    tokenizer = native_tokenizer(source, vocab_size=int(config["llm_config"]["vocab_size"]))
    ids = tokenizer.get_vocab()
    processor = native_processor(tokenizer, config)
    processor.save_pretrained(target)
    processor.image_processor.save_pretrained(target)  # a file of its own for readers before transformers 5
    converted = native_config(
        config, image_token_id=ids[IMAGE_TOKENS["context_image_token"]], end_of_turn_id=ids[END_OF_TURN]
    )
    _write_json(target / CONFIG_FILE, converted)
    given = source / GENERATION_CONFIG
    settings = generation_settings(
        read_json(given) if given.is_file() else {}, end_of_turn_id=ids[END_OF_TURN], pad_id=tokenizer.pad_token_id
    )
    _write_json(target / GENERATION_CONFIG, settings)
    _copy(source, target, DOCUMENTS)
    kept = target / KEPT_FOLDER
    kept.mkdir()
    _copy(source, kept, DESCRIPTIONS)


def _describe_custom(source: Path, target: Path) -> None:
    """All files but the weights of the custom folder: those once kept, else derived ones."""
    kept = source / KEPT_FOLDER
    if kept.is_dir():
        _copy(kept, target, DESCRIPTIONS)
    else:
        _copy(source, target, DESCRIPTIONS)
        for name in NATIVE_ONLY:
            (target / name).unlink(missing_ok=True)
    _write_json(target / CONFIG_FILE, _kept_or_derived(source, read_json(source / CONFIG_FILE)))
    _copy(source, target, DOCUMENTS)


def _kept_or_derived(source: Path, native: dict[str, Any]) -> dict[str, Any]:
    """The custom `config.json` of a native folder.

    Raises:
        ConfigError: the kept one describes another model than the folder's own, or none can be derived.
    """
    kept = source / KEPT_FOLDER / CONFIG_FILE
    if not kept.is_file():
        has_head = HEAD in {saved_name(name) for name in read_tensors(source)}
        return custom_config(native, _image_settings(source), has_head=has_head)
    custom = read_json(kept)
    if native_config(
        custom, image_token_id=native["image_token_id"], end_of_turn_id=native["text_config"]["eos_token_id"]
    ) != _without_version(native):
        raise ConfigError(
            f"{kept} no longer describes {source / CONFIG_FILE}, which was changed since the conversion; delete "
            f"{source / KEPT_FOLDER} to have it derived anew"
        )
    return custom


def _without_version(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "transformers_version"}


def _image_settings(folder: Path) -> dict[str, Any]:
    """Of the image processor, wherever the folder has them."""
    for name in FAMILIES[NATIVE_LAYOUT].processor_files:
        if (folder / name).is_file():
            tree = read_json(folder / name)
            settings = tree.get("image_processor", tree)
            if isinstance(settings, dict) and "size" in settings:
                return settings
    raise ConfigError(f"{folder} has no image processor settings; copy them from the published checkpoint")


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and file.name != INDEX_FILE:
                shutil.copyfile(file, target / file.name)


def _write_json(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
