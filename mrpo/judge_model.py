"""The model of a run's own judge (`judge.kind=vllm`): where it is, and a name that changes with its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mrpo.checkpoint_source import checkpoint_folder
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError

FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")  # what decides about replies
WHOLE_BYTES = 2**20  # larger files are known by size and both ends
NAME_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnJudge:
    """What is served."""

    folder: Path
    served_name: str  # what requests, records and cached rulings call it; two checkpoints of one name differ in it


def own_judge(judge: JudgeConfig) -> OwnJudge:
    """The checkpoint of `judge.vllm.model`; a hub id is looked up in the hub's local cache, or fetched.

    Raises:
        ConfigError: it is neither a folder nor to be had from the hub, or no checkpoint.
    """
    assert judge.vllm.model is not None
    return _own_judge(judge.vllm.model)


@lru_cache(maxsize=1)
def _own_judge(model: str) -> OwnJudge:
    folder = checkpoint_folder(model, revision=None, setting="judge.vllm.model")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"judge.vllm.model={model} has no config.json; give the folder of a Hugging Face checkpoint")
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in FILES and file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(_ends(file))
    name = Path(model).expanduser().name
    return OwnJudge(folder=folder, served_name=f"{name}@{digest.hexdigest()[:NAME_DIGITS]}")


def _ends(file: Path) -> bytes:
    with file.open("rb") as content:
        first = content.read(WHOLE_BYTES)
        if file.stat().st_size <= WHOLE_BYTES:
            return first
        content.seek(-WHOLE_BYTES, 2)
        return first + content.read()
