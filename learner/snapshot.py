"""What a checkpoint is made of: live, gathered piece by piece while it is written, or copied to the host's memory.

A live one is a collective from first to last, and holds one tensor at a time. A copy takes as much of the memory of
rank 0's host as the checkpoint takes of the disk, and training goes on while rank 0 alone writes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from learner.disk import checkpoint_bytes
from learner.frozen_hash import frozen_hash
from learner.hf_folder import HfModel, hf_model
from learner.lora import plain_parameters
from learner.optimizer import MOMENTS
from learner.rank import Rank
from learner.reference import Reference
from learner.rng import rng_states

Tensors = Iterator[tuple[str, Tensor]]
FORMAT_VERSION = 2  # 1 holds frozen weights too, and no adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """One checkpoint. Iterators are used up once, in the order of the fields."""

    state: dict[str, Any]  # of `state.json`, without the files' hashes
    rng: dict[str, Tensor]
    parts: dict[str, Tensors]  # file stem → tensors by parameter name
    hf: HfModel
    hf_weights: Tensors
    adapter: Tensors | None  # None: full fine-tuning
    peft_config: Any  # None: full fine-tuning
    num_bytes: int  # of all tensors

    def drain(self) -> None:
        """Gather what is left: a collective, in which ranks that do not write run along, and a writer that failed."""
        for tensors in (*self.parts.values(), self.hf_weights, self.adapter or ()):
            for _ in tensors:
                pass


def live_contents(rank: Rank) -> Contents:
    """Of the rank as it is now. Every rank must make one, and use it up in lockstep."""
    parts: dict[str, Tensors] = {"weights": _masters(rank)}
    parts |= {name: _moments(rank, name) for name in MOMENTS}
    if isinstance(rank.reference, Reference):
        parts["reference"] = rank.reference.weights()
    adapters = rank.adapters
    return Contents(
        state={
            "format_version": FORMAT_VERSION,
            "num_steps": rank.num_steps,
            "num_adam_steps": rank.optimizer.num_steps,
            "lora": lora_settings(rank),
            "frozen_weights": frozen_hash(rank),
        },
        rng=rng_states(rank.device),
        parts=parts,
        hf=hf_model(rank),
        hf_weights=iter(rank.source),
        adapter=None if adapters is None else adapters.whole_weights(),
        peft_config=None if adapters is None else adapters.peft_config,
        num_bytes=checkpoint_bytes(rank),
    )


def host_copy(rank: Rank) -> Contents | None:
    """A copy in rank 0's main memory, None on the other ranks; a collective.

    Frozen weights that lie whole in main memory already are referred to, not copied: they never change.
    """
    live = live_contents(rank)

    def copied(tensors: Tensors, constant: Collection[str] = ()) -> Tensors:
        held: deque[tuple[str, Tensor]] = deque()
        for name, tensor in tensors:
            if rank.rank == 0:
                stays = name in constant and tensor.device.type == "cpu"
                held.append((name, tensor.detach() if stays else tensor.detach().to("cpu", copy=True)))
        return _given_away(held)

    constant = {"reference": _names_of_reference(rank)}
    contents = replace(
        live,
        parts={stem: copied(tensors, constant.get(stem, ())) for stem, tensors in live.parts.items()},
        hf_weights=copied(live.hf_weights, _frozen_names(rank)),
        adapter=None if live.adapter is None else copied(live.adapter),
    )
    return contents if rank.rank == 0 else None


def lora_settings(rank: Rank) -> dict[str, Any] | None:
    """What must be alike when a run goes on; dropout may change."""
    if rank.adapters is None:
        return None
    config = rank.adapters.config
    return {"r": config.r, "alpha": config.alpha, "targets": list(rank.adapters.targets)}


def _masters(rank: Rank) -> Tensors:
    """Master weights of trained parameters."""
    for name, parameter in rank.model.named_parameters():
        if parameter.requires_grad:
            yield name, rank.optimizer.master(parameter)


def _moments(rank: Rank, moment: str) -> Tensors:
    for name, parameter in rank.model.named_parameters():
        if parameter.requires_grad:
            yield name, rank.optimizer.moment(parameter, moment)


def _given_away(held: deque[tuple[str, Tensor]]) -> Tensors:
    """Memory is free again as soon as the taker needs it no more."""
    while held:
        yield held.popleft()


def _names_of_reference(rank: Rank) -> set[str]:
    if not isinstance(rank.reference, Reference):
        return set()
    return {name for name, _ in rank.reference.model.named_parameters()}


def _frozen_names(rank: Rank) -> set[str]:
    """Saved names of weights that are neither trained nor merged with what is."""
    plain = plain_parameters(rank.model, rank.adapters)
    return {
        meta.name
        for meta, (_, parameter, layer) in zip(rank.source.metadata(), plain, strict=True)
        if layer is None and not parameter.requires_grad
    }
