"""The learner's state on disk: safetensors and JSON by parameter name, so that any number of ranks and any ZeRO stage
can resume from it, and nothing in it is ever unpickled.

    learner/state.json                    counters, file hashes; adapter settings and the hash of frozen weights
    learner/{weights,exp_avg,exp_avg_sq}-*.safetensors     of trained weights: full float32 tensors
    learner/reference-*.safetensors       weights of the reference, where it is a copy
    learner/rng.safetensors               generator states of rank 0
    hf/                                   a Hugging Face folder that transformers and vLLM load, adapters merged
    adapter/                              under LoRA: the adapters as PEFT writes them, for PEFT and vLLM
    manifest.json                         checksums of all of these, written last

Frozen weights are not in the state: they come from the model that the run started from, which must be the same again.

Every rank calls `save`, `snapshot` and `load`, because reading a full tensor is a collective; rank 0 alone writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist

from learner.agreement import together
from learner.disk import disk_errors, require_room
from learner.frozen_hash import frozen_hash
from learner.hf_folder import write_hf_folder
from learner.lora import write_adapter_files
from learner.optimizer import MOMENTS
from learner.partitioned import full_shape, gathered
from learner.rank import Rank
from learner.reference import Reference
from learner.rng import set_rng_states
from learner.snapshot import FORMAT_VERSION, Contents, host_copy, live_contents, lora_settings
from learner.tensor_files import read_tensors, write_tensors
from mrpo.atomic import fsync
from mrpo.errors import DataError
from mrpo.manifest import check_sizes, file_hash, write_manifest

STATE_FOLDER = "learner"
HF_FOLDER = "hf"
ADAPTER_FOLDER = "adapter"
STATE_FILE = "state.json"
RNG_FILE = "rng.safetensors"


def save(rank: Rank, folder: Path) -> None:
    """Write everything needed to resume, and `hf/`, into an existing folder, on disk when it returns.

    Every rank calls it; no more than a file's tensors are held in main memory at a time.

    Raises:
        ResourceError: the disk is full, or cannot be written; on every rank, and the group goes on.
    """
    contents = live_contents(rank)

    def check_room() -> None:
        if rank.rank == 0:
            require_room(folder, contents.num_bytes)

    def write_or_run_along() -> None:
        try:
            if rank.rank == 0:
                _write(contents, folder)
        finally:
            contents.drain()

    together(rank.world_size, check_room)
    together(rank.world_size, write_or_run_along)


def snapshot(rank: Rank) -> Contents | None:
    """A copy of what `save` would write, in rank 0's main memory, None elsewhere; every rank calls it."""
    return host_copy(rank)


def write(contents: Contents, folder: Path) -> None:
    """Write a snapshot into an existing folder, beside a rank that trains on; the snapshot is used up.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    require_room(folder, contents.num_bytes)
    _write(contents, folder)


def _write(contents: Contents, folder: Path) -> None:
    with disk_errors(folder, contents.num_bytes):
        hashes = _write_state(contents, folder / STATE_FOLDER)
        write_hf_folder(folder / HF_FOLDER, contents.hf, contents.hf_weights)
        if contents.adapter is not None:
            tensors = {name: tensor.cpu() for name, tensor in contents.adapter}
            write_adapter_files(tensors, contents.peft_config, folder / ADAPTER_FOLDER)
        write_manifest(folder, {f"{STATE_FOLDER}/{name}": digest for name, digest in hashes.items()})


def _write_state(contents: Contents, folder: Path) -> dict[str, str]:
    """Write the learner's own state; returns the files' sha256."""
    folder.mkdir()
    files = {stem: write_tensors(folder, stem, tensors) for stem, tensors in contents.parts.items()}
    rng = folder / RNG_FILE
    save_file(contents.rng, rng)
    fsync(rng)
    files["rng"] = {RNG_FILE: file_hash(rng)}
    path = folder / STATE_FILE
    path.write_text(json.dumps({**contents.state, "files": files}, indent=2) + "\n", encoding="utf-8")
    fsync(path)
    fsync(folder)
    return {name: digest for hashes in files.values() for name, digest in hashes.items()}


def load(rank: Rank, folder: Path) -> None:
    """Restore what `save` wrote; the number of ranks and the ZeRO stage may differ from those that saved.

    Whoever chose the folder has compared it with its checksums (`mrpo.manifest.check_manifest`); every rank doing it
    again would read it once more each.

    Raises:
        DataError: no checkpoint there, a cut file, or one of another model or of other adapters.
    """
    state_folder = folder / STATE_FOLDER
    state = _read_state(state_folder / STATE_FILE)
    check_sizes(folder, part=STATE_FOLDER)
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
    set_rng_states(load_file(state_folder / RNG_FILE), rank.device)
    rank.num_steps = state["num_steps"]
    if rank.world_size > 1:
        dist.barrier()


def _check_lora(rank: Rank, state: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of other adapters, or of none."""
    saved = state["lora"] if state["format_version"] > 1 else None
    asked = lora_settings(rank)
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
