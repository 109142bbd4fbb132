"""Where a real policy's files are: a local folder, or one fetched from the Hugging Face hub before anything starts."""

from __future__ import annotations

from pathlib import Path

from mrpo.checkpoint_checks import check_checkpoint
from mrpo.checkpoint_checks import model_type_of as written_model_type
from mrpo.config import Config, ModelConfig
from mrpo.errors import ConfigError
from mrpo.families import Family, family_of
from mrpo.images import require_tiles

# Weights in safetensors and what describes them: no pickles, no code, no copies in other formats.
NEEDED = ("*.json", "*.jinja", "*.txt", "*.safetensors", "LICENSE*", "NOTICE*", "README.md")
UNNEEDED = ("*/*",)  # nor folders, which hold other formats


def local_checkpoint(model: ModelConfig) -> Path:
    """The folder of `model.path`, with everything checked that can be without loading it.

    A hub id is looked up in the hub's local cache and fetched where it is not there.

    Raises:
        ConfigError: neither a folder nor to be had from the hub, an unsupported layout, another family than
            `model.family`, files of processor or tokenizer that are absent, or `model.max_tiles` without tiles.
        DataError: damaged or missing weights.
    """
    assert model.path is not None
    folder = checkpoint_folder(model.path, revision=model.revision, setting="model.path")
    family = check_checkpoint(folder, expected=None if model.family is None else model.family.value)
    require_tiles(family, model.max_tiles)
    return folder


def model_type_of(folder: Path) -> str:
    """The Hugging Face `model_type` of a checkpoint; a row of `mrpo.families`.

    Raises:
        ConfigError: no readable `config.json`, or an unsupported family or layout.
    """
    return family_of(written_model_type(folder), folder).model_type


def checkpoint_folder(path: str, *, revision: str | None, setting: str) -> Path:
    """The folder a path or hub id means; nothing in it is looked at.

    Args:
        path: a folder, or a hub id such as `Qwen/Qwen3-VL-8B-Instruct`.
        revision: branch, tag or commit on the hub; None is its main branch.
        setting: what `path` was given as, for the message.

    Raises:
        ConfigError: neither a folder nor to be had from the hub.
    """
    folder = Path(path).expanduser()
    return folder.resolve() if folder.is_dir() else _from_hub(path, revision, setting)


def _from_hub(path: str, revision: str | None, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(path, revision=revision, allow_patterns=list(NEEDED), ignore_patterns=list(UNNEEDED))
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{setting}={path} is no folder here and cannot be had from the Hugging Face hub ({reason}); "
            f"copy the checkpoint to this machine and set {setting}=<folder>"
        ) from None


def policy_family(config: Config, model_folder: Path | None) -> Family:
    """The family of the policy of a run.

    Args:
        config: of the run.
        model_folder: from `local_checkpoint`; None: a toy.

    Raises:
        ConfigError: no model there, or an unsupported family.
    """
    return family_of(config.model.toy_family.value if model_folder is None else model_type_of(model_folder))
