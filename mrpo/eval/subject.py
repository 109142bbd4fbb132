"""What is evaluated: a checkpoint of a run, any Hugging Face checkpoint, or outputs generated elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.choices import CheckpointChoice
from mrpo.errors import ConfigError
from mrpo.manifest import MANIFEST, check_manifest
from mrpo.run_reading import list_checkpoints, read_config, read_state

INHERITED = ("model", "algorithm", "rollout")  # sections of a run's configuration that say how its policy is asked
NOT_INHERITED = ("model.path", "model.revision", "rollout.max_model_len")  # of the checkpoint, or of another data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, with the settings it was trained with where these are known."""

    name: str  # for tables and folders
    path: str  # a Hugging Face folder or hub id
    overrides: list[str]  # of the configuration, before those of the command line


def find_subject(model: str, checkpoint: CheckpointChoice) -> Subject:
    """Look up what `benchmark.model` means.

    Args:
        model: a run folder, a checkpoint in one, a Hugging Face folder or a hub id.
        checkpoint: which of a run folder's.

    Raises:
        ConfigError: a run folder without such a checkpoint.
        DataError: a damaged run folder, or a checkpoint whose files are not as they were written.
    """
    folder = Path(model).expanduser()
    if (folder / "state.json").is_file():
        chosen = _checkpoint(folder, checkpoint)
        return _of_run(folder, chosen)
    run = next((parent for parent in folder.parents if (parent / "state.json").is_file()), None)
    if folder.is_dir() and run is not None:
        return _of_run(run, folder if (folder / "config.json").is_file() else folder / "hf")
    name = folder.name if folder.is_dir() else model.replace("/", "--")
    return Subject(name=name, path=model, overrides=["model.terse_prompt=false", "rollout=paper"])


def _checkpoint(run: Path, choice: CheckpointChoice) -> Path:
    found = {checkpoint.step: checkpoint.path for checkpoint in list_checkpoints(run)}
    if not found:
        raise ConfigError(f"benchmark.model={run} has no checkpoint yet; train on, or name another run")
    if choice == CheckpointChoice.LATEST:
        return found[max(found)] / "hf"
    best = read_state(run).best
    if best is None or best.step not in found:
        raise ConfigError(
            f"benchmark.checkpoint=best: {run} was not evaluated during training (eval.every_steps=0); "
            "use benchmark.checkpoint=latest"
        )
    return found[best.step] / "hf"


def _of_run(run: Path, folder: Path) -> Subject:
    if (folder.parent / MANIFEST).is_file():  # a checkpoint of an earlier version has none
        check_manifest(folder.parent, part=folder.name)
    config = read_config(run)
    pairs = [pair for name in INHERITED for pair in _flat(name, config[name])]
    step = folder.parent.name if folder.name == "hf" else folder.name
    return Subject(
        name=f"{config['experiment']}-{run.resolve().name}-{step}",
        path=str(folder.resolve()),
        # JSON is how Hydra's grammar spells these values, quoted strings included.
        overrides=[f"{key}={json.dumps(value)}" for key, value in pairs if key not in NOT_INHERITED],
    )


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(f"{name}.{key}", item)]
    return [(name, value)]


def digest_of(parts: Sequence[str]) -> str:
    """A short name for what all parts together say."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def context_length(folder: Path) -> int | None:
    """Positions the language model of a checkpoint has; None where its `config.json` does not say."""
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for section in (tree.get("text_config"), tree.get("llm_config"), tree):
        if isinstance(section, dict) and isinstance(section.get("max_position_embeddings"), int):
            return int(section["max_position_embeddings"])
    return None
