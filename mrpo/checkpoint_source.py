"""Where a real policy's files are: a local folder, or one fetched from the Hugging Face hub before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

from mrpo.config import ModelConfig
from mrpo.errors import ConfigError
from mrpo.families import family_of


def local_checkpoint(model: ModelConfig) -> Path:
    """The folder of `model.path`; a hub id is looked up in the hub's local cache and fetched where it is not there.

    Raises:
        ConfigError: neither a folder nor to be had from the hub, no `config.json`, or an unsupported family.
    """
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        folder = _from_hub(model)
    model_type_of(folder)
    return folder.resolve()


def model_type_of(folder: Path) -> str:
    """The Hugging Face `model_type` of a checkpoint; a row of `mrpo.families`.

    Raises:
        ConfigError: no readable `config.json`, or an unsupported family.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model at {file}: {error}; give model.path a Hugging Face model folder") from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise ConfigError(f"{file} names no model_type; give model.path a Hugging Face model folder")
    return family_of(model_type).model_type


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    assert model.path is not None
    try:
        return Path(snapshot_download(model.path, revision=model.revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.path={model.path} is no folder here and cannot be had from the Hugging Face hub ({reason}); "
            "copy the checkpoint to this machine and set model.path=<folder>"
        ) from None
