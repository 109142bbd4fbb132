"""The learner's state on disk: safetensors and JSON by parameter name, so that any number of ranks and any ZeRO stage
can resume from it, and nothing in it is ever unpickled.

    learner/state.json                    counters, file hashes; adapter settings and the hash of frozen weights
    learner/{weights,exp_avg,exp_avg_sq}-*.safetensors     of trained weights: full float32 tensors
    learner/reference-*.safetensors       weights of the reference, where it is a copy
    learner/rng.safetensors               generator states of rank 0
    hf/                                   a Hugging Face folder that transformers and vLLM load, adapters merged
    adapter/                              under LoRA: the adapters as PEFT writes them, for PEFT and vLLM

Frozen weights are not in the state: they come from the model that the run started from, which must be the same again.

Every rank calls `save` and `load`, because reading a full tensor is a collective; rank 0 alone touches the folder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist

from learner.agreement import together
from learner.disk import checkpoint_bytes, disk_errors, require_room
from learner.frozen_hash import frozen_hash
from learner.hf_folder import save_hf_folder
from learner.lora import write_adapter
from learner.optimizer import MOMENTS
from learner.partitioned import full_shape, gathered, whole_copy
from learner.rank import Rank
from learner.reference import Reference
from learner.tensor_files import check_hashes, file_hash, read_tensors, write_tensors
from mrpo.atomic import fsync
from mrpo.errors import DataError

FORMAT_VERSION = 2  # 1 holds frozen weights too, and no adapters
STATE_FOLDER = "learner"
HF_FOLDER = "hf"
ADAPTER_FOLDER = "adapter"
STATE_FILE = "state.json"
RNG_FILE = "rng.safetensors"


def save(rank: Rank, folder: Path) -> None:
    """Write everything needed to resume, and `hf/`, into an existing folder, on disk when it returns.

    Raises:
        ResourceError: the disk is full, or cannot be written; on every rank, and the group goes on.
    """
    needed = checkpoint_bytes(rank)
    frozen = frozen_hash(rank)

    def writing(write: Callable[[], object]) -> None:
        """All ranks take part in `write`, also where it fails on rank 0."""

        def check() -> None:
            with disk_errors(folder, needed):
                write()

        together(rank.world_size, check)

    together(rank.world_size, lambda: require_room(folder, needed) if rank.rank == 0 else None)
    writing(lambda: _save_state(rank, folder / STATE_FOLDER, frozen))
    writing(lambda: save_hf_folder(rank, folder / HF_FOLDER))
    if rank.adapters is not None:
        writing(lambda: write_adapter(rank, folder / ADAPTER_FOLDER))


def _save_state(rank: Rank, folder: Path, frozen: str | None) -> None:
    parts: dict[str, Iterator[tuple[str, Tensor]]] = {"weights": _weights(rank)}
    parts |= {name: _moments(rank, name) for name in MOMENTS}
    if isinstance(rank.reference, Reference):
        parts["reference"] = _plain_weights(rank.reference.model)
    try:
        if rank.rank == 0:
            folder.mkdir()
            files = {stem: write_tensors(folder, stem, tensors) for stem, tensors in parts.items()}
            rng = folder / RNG_FILE
            save_file(_rng_states(rank.device), rng)
            fsync(rng)
            files["rng"] = {RNG_FILE: file_hash(rng)}
            _write_state(folder / STATE_FILE, {
                "format_version": FORMAT_VERSION,
                "num_steps": rank.num_steps,
                "num_adam_steps": rank.optimizer.num_steps,
                "lora": _lora_settings(rank),
                "frozen_weights": frozen,
                "files": files,
            })  # fmt: skip
    finally:
        # Gathering is a collective: ranks that do not write run along, and so does the writer when it fails.
        for tensors in parts.values():
            for _ in tensors:
                pass


def load(rank: Rank, folder: Path) -> None:
    """Restore what `save` wrote; the number of ranks and the ZeRO stage may differ from those that saved.

    Raises:
        DataError: no checkpoint there, a damaged file, or one of another model or of other adapters.
    """
    state_folder = folder / STATE_FOLDER
    state = _read_state(state_folder / STATE_FILE)
    for hashes in state["files"].values():
        check_hashes(state_folder, hashes)
    _check_lora(rank, state, folder)
    _check_frozen(rank, state, folder)
    parameters = dict(rank.model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    files = {stem: list(hashes) for stem, hashes in state["files"].items()}
    held = trained if state["format_version"] > 1 else parameters
    for name, value in _matching(state_folder, files["weights"], held):
        if name in trained:
            rank.optimizer.set_master(trained[name], value)
        _set_weight(parameters[name], value)
    for moment in MOMENTS:
        for name, value in _matching(state_folder, files[moment], trained):
            rank.optimizer.set_moment(trained[name], moment, value)
    rank.optimizer.set_num_steps(state["num_adam_steps"])
    rank.optimizer.sync_model()
    if isinstance(rank.reference, Reference):
        frozen = dict(rank.reference.model.named_parameters())
        if "reference" not in files:
            raise DataError(
                f"checkpoint {folder} holds no reference model, but algorithm.loss.beta={rank.spec.loss.beta}; "
                "resume with beta=0, as it was trained"
            )
        for name, value in _matching(state_folder, files["reference"], frozen):
            _set_weight(frozen[name], value)
    _set_rng_states(load_file(state_folder / RNG_FILE), rank.device)
    rank.num_steps = state["num_steps"]
    if rank.world_size > 1:
        dist.barrier()


def _lora_settings(rank: Rank) -> dict[str, Any] | None:
    """What must be alike when a run goes on; dropout may change."""
    if rank.adapters is None:
        return None
    config = rank.adapters.config
    return {"r": config.r, "alpha": config.alpha, "targets": list(rank.adapters.targets)}


def _check_lora(rank: Rank, state: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of other adapters, or of none."""
    saved = state["lora"] if state["format_version"] > 1 else None
    asked = _lora_settings(rank)
    if saved != asked:
        raise DataError(
            f"checkpoint {folder} was trained with {_described(saved)}, this run with {_described(asked)}; resume with "
            "lora.r, lora.alpha and lora.targets as they were, or start anew from its hf/ folder"
        )


def _described(lora: dict[str, Any] | None) -> str:
    if lora is None:
        return "no adapters (r=0)"
    return f"adapters of r={lora['r']}, alpha={lora['alpha']:g} on {', '.join(lora['targets'])}"


def _check_frozen(rank: Rank, state: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint that was trained on top of other frozen weights."""
    if state["format_version"] == 1:
        rank.frozen_hash = None  # the frozen weights come from the checkpoint
    elif state["frozen_weights"] != frozen_hash(rank):
        raise DataError(
            f"checkpoint {folder} was trained on other frozen weights than those of {rank.spec.model_folder}; resume "
            "with the model it started from (model.path, model.revision) and with the same parts of it frozen"
        )


def _weights(rank: Rank) -> Iterator[tuple[str, Tensor]]:
    """Master weights of trained parameters."""
    for name, parameter in rank.model.named_parameters():
        if parameter.requires_grad:
            yield name, rank.optimizer.master(parameter)


def _moments(rank: Rank, moment: str) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in rank.model.named_parameters():
        if parameter.requires_grad:
            yield name, rank.optimizer.moment(parameter, moment)


def _plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, whole_copy(parameter)


def _set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Every rank passes the same value; at ZeRO-3 it is partitioned again."""
    with gathered(parameter, writer=0):
        parameter.data.copy_(value)


def _matching(folder: Path, files: list[str], wanted: dict[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors, which must be those of this model."""
    seen: set[str] = set()
    for name, value in read_tensors(folder, files):
        if name not in wanted or full_shape(wanted[name]) != tuple(value.shape):
            expected = full_shape(wanted[name]) if name in wanted else "no such parameter"
            raise DataError(
                f"checkpoint {folder} does not fit the model: {name} has shape {tuple(value.shape)}, expected "
                f"{expected}; resume with the model it was trained from"
            )
        seen.add(name)
        yield name, value
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise DataError(f"checkpoint {folder} lacks {len(missing)} parameters of the model, e.g. {missing[0]}")


def _write_state(path: Path, state: dict[str, Any]) -> None:
    path.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    fsync(path)
    fsync(path.parent)


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"no learner checkpoint in {path.parent.parent}: {path} is missing")
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"checkpoint file {path} is not JSON ({error}); resume from an earlier checkpoint") from error
    if state["format_version"] not in (1, FORMAT_VERSION):
        raise DataError(
            f"{path} has format version {state['format_version']}, this program reads 1 and {FORMAT_VERSION}"
        )
    return state


def _rng_states(device: torch.device) -> dict[str, Tensor]:
    """States of Python's, NumPy's and torch's generators as tensors."""
    _, python_words, _ = random.getstate()
    numpy_state = np.random.get_state(legacy=False)["state"]
    states = {
        "python": torch.tensor(python_words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.append(numpy_state["key"].astype(np.int64), numpy_state["pos"])),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    random.setstate((3, tuple(states["python"].tolist()), None))
    *words, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, 0, 0.0))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
