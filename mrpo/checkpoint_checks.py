"""What can be known of a checkpoint before anything expensive starts: its files, headers and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrpo.errors import ConfigError, DataError
from mrpo.families import Family, family_of
from mrpo.weight_files import read_json, read_tensors, refuse_pointer

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # one of these sets
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
COMPLETE = "copy it from the published checkpoint"


def check_checkpoint(folder: Path, *, expected: str | None = None) -> Family:
    """Check all that is needed to load model, tokenizer and processor of `folder`.

    Args:
        folder: of a checkpoint.
        expected: the `model_type` it must have; None takes any family.

    Returns:
        The family of the checkpoint.

    Raises:
        ConfigError: no model, an unsupported layout, another family, or no processor or tokenizer.
        DataError: a file that is missing, damaged or no more than a git-lfs pointer.
    """
    family = family_of(model_type_of(folder), folder)
    if expected is not None and family.model_type != expected:
        raise ConfigError(
            f"{folder} is of family {family.model_type!r}, but model.family={expected}; choose the experiment or model "
            f"of its family (make models lists them), or another model.path"
        )
    _check_processor(folder, family)
    _check_tokens(folder, family)
    read_tensors(folder)
    return family


def model_type_of(folder: Path) -> str:
    """The `model_type` that a checkpoint's `config.json` names, of whatever family.

    Raises:
        ConfigError: no readable `config.json`, or one without model type.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"no model at {file}: no such file; give model.path a Hugging Face model folder")
    try:
        model_type = read_json(file).get("model_type")
    except DataError as error:
        raise ConfigError(f"no model at {file}: {error}, or give model.path another folder") from None
    if not isinstance(model_type, str):
        raise ConfigError(f"{file} names no model_type; give model.path a Hugging Face model folder")
    return model_type


def _check_processor(folder: Path, family: Family) -> None:
    if not any((folder / name).is_file() for name in family.processor_files):
        raise ConfigError(
            f"{folder} has neither {' nor '.join(family.processor_files)}: no image processor; {COMPLETE}"
        )
    for name in family.processor_files:
        if (folder / name).is_file():
            read_json(folder / name)
    if not (folder / TOKENIZER_CONFIG).is_file():
        raise ConfigError(f"{folder} has no {TOKENIZER_CONFIG}; {COMPLETE}")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        sets = " nor ".join(" with ".join(names) for names in TOKENIZER_FILES)
        raise ConfigError(f"{folder} has neither {sets}: no tokenizer; {COMPLETE}")
    for names in TOKENIZER_FILES:
        for name in names:
            if (folder / name).is_file():
                refuse_pointer(folder / name)
    if not any((folder / name).is_file() for name in CHAT_TEMPLATES) and not any(
        "chat_template" in read_json(folder / name)
        for name in (TOKENIZER_CONFIG, *family.processor_files)
        if (folder / name).is_file()
    ):
        raise ConfigError(f"{folder} has no chat template ({' or '.join(CHAT_TEMPLATES)}); {COMPLETE}")


def _check_tokens(folder: Path, family: Family) -> None:
    missing = {family.image_token, family.end_of_turn}
    for tokens in added_tokens(folder):
        missing -= tokens.keys()
        if not missing:
            return
    raise ConfigError(
        f"the tokenizer in {folder} has no token {sorted(missing)[0]!r}, which family {family.model_type!r} needs; "
        "use the tokenizer of the published checkpoint"
    )


def added_tokens(folder: Path) -> list[dict[str, int]]:
    """Added tokens and their ids, as each of the tokenizer's files that is there says; the quickest to read first."""
    return [found for read in (_from_config, _from_list, _from_tokenizer) if (found := read(folder))]


def _from_config(folder: Path) -> dict[str, int]:
    file = folder / TOKENIZER_CONFIG
    decoder: dict[str, Any] = (read_json(file).get("added_tokens_decoder") or {}) if file.is_file() else {}
    return {entry["content"]: int(index) for index, entry in decoder.items()}


def _from_list(folder: Path) -> dict[str, int]:
    file = folder / "added_tokens.json"
    return read_json(file) if file.is_file() else {}


def _from_tokenizer(folder: Path) -> dict[str, int]:
    file = folder / "tokenizer.json"
    entries: list[dict[str, Any]] = (read_json(file).get("added_tokens") or []) if file.is_file() else []
    return {entry["content"]: int(entry["id"]) for entry in entries}
