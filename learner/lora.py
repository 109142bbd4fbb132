"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers of the language model, made by PEFT in place.

Under LoRA nothing but adapters is trained: base weights, embeddings, head, vision tower and projector are frozen. An
adapter starts as zero, so that the policy starts as the base model, which stays at hand by switching adapters off.

Letters: r rank, I and O inputs and outputs of a layer. W [O, I] base weight, A [r, I], B [O, r].
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learner.partitioned import full_shape, gathered, whole_copy
from mrpo.config import LoraConfig
from mrpo.errors import ConfigError
from mrpo.families import Family

if TYPE_CHECKING:
    from learner.rank import Rank

ADAPTER = "default"  # PEFT's name of the one adapter
LANGUAGE_MODEL = "model.language_model."  # its parameters' prefix in a live model, in every family
WEIGHTS_FILE = "adapter_model.safetensors"  # names and layout are PEFT's
SAVED_PREFIX = "base_model.model."  # of names in that file


class TrainingDropout(nn.Dropout):
    """Dropout only where a gradient will be taken: scoring, the parity gate and the reference see none of it.

    Gradient checkpointing computes with gradients both times, and with the same random numbers (it is not re-entrant).

    A reinforcement step measures its ratio from its own forward pass, so that the ratio is 1 whatever is dropped. The
    off-policy weights and the KL compare that pass with the sampler's and the reference's log-probs, which know no
    dropout: they take its noise for a difference. `learner.lora.dropout=0` spares them that.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        return super().forward(input) if torch.is_grad_enabled() else input


@dataclass(slots=True, kw_only=True)
class Adapters:
    """The adapters of one model."""

    config: LoraConfig
    targets: tuple[str, ...]  # names of the adapted layers, sorted
    layers: dict[str, Any]  # PEFT's layer by name of the module it took the place of, in the model's order
    peft_config: Any

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model: adapters compute and count 0 times.

        Leaving them out would change the order of modules, which ZeRO-3 has learned to fetch parameters by.
        """
        for layer in self.layers.values():
            layer.set_scale(ADAPTER, 0.0)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.set_scale(ADAPTER, 1.0)

    @torch.no_grad()
    def merged(self, name: str) -> Tensor:
        """W + alpha / r · B · A of one layer, [O, I] in the base weight's number format, calculated in float32.

        A collective at ZeRO-3; only this layer is whole at the time.
        """
        layer = self.layers[name]
        base, a, b = layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        with gathered(base, a, b):
            exact = torch.promote_types(base.dtype, torch.float32)
            summed = torch.addmm(base.to(exact), b.to(exact), a.to(exact), alpha=layer.scaling[ADAPTER])
            return summed.to(base.dtype)

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in PEFT's file, parameter) of every A and B."""
        for name, layer in self.layers.items():
            yield f"{SAVED_PREFIX}{name}.lora_A.weight", layer.lora_A[ADAPTER].weight
            yield f"{SAVED_PREFIX}{name}.lora_B.weight", layer.lora_B[ADAPTER].weight

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """As `weights`, each a copy of the whole; a collective at ZeRO-3."""
        for name, parameter in self.weights():
            yield name, whole_copy(parameter)


def add_adapters(model: Any, family: Family, config: LoraConfig) -> Adapters | None:
    """Freeze the model and put adapters on its layers; None where `config.r` is 0, and then nothing changes.

    Names of the model's own modules and parameters stay, except that an adapted layer's weight and bias move into its
    `base_layer`.

    Raises:
        ConfigError: a target that the language model does not have.
    """
    if config.r == 0:
        return None
    import peft

    targets = _targets(model, family, config)
    peft_config = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        # One expression for a whole name: layers of the vision tower may bear the same last names.
        target_modules=rf"{re.escape(LANGUAGE_MODEL)}(.*\.)?({'|'.join(targets)})",
        base_model_name_or_path=model.name_or_path,
    )
    model.requires_grad_(False)
    peft.inject_adapter_in_model(peft_config, model, ADAPTER)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    for layer in layers.values():
        if config.dropout > 0.0:
            layer.lora_dropout[ADAPTER] = TrainingDropout(config.dropout)
    return Adapters(config=config, targets=targets, layers=layers, peft_config=peft_config)


def _targets(model: nn.Module, family: Family, config: LoraConfig) -> tuple[str, ...]:
    asked = config.targets or family.lora_targets
    present = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(LANGUAGE_MODEL) and isinstance(module, nn.Linear)
    }
    unknown = sorted(set(asked) - present)
    if unknown:
        raise ConfigError(
            f"lora.targets={list(asked)}: the language model of {family.model_type} has no linear layer named "
            f"{', '.join(unknown)}; it has {', '.join(sorted(present))}"
        )
    return tuple(sorted(set(asked)))


def plain_parameters(model: nn.Module, adapters: Adapters | None) -> Iterator[tuple[str, nn.Parameter, str | None]]:
    """(name, parameter, adapted layer it is the weight of or None) of the model as it would be without adapters."""
    layers = adapters.layers if adapters is not None else {}
    own = {id(parameter) for _, parameter in adapters.weights()} if adapters is not None else set()
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            continue
        layer, marker, leaf = name.rpartition(".base_layer.")
        if not marker or layer not in layers:
            yield name, parameter, None
        else:
            yield f"{layer}.{leaf}", parameter, layer if leaf == "weight" else None


def seed_dropout(rank: Rank) -> None:
    """Seed what this step's dropout draws, from seed, step and rank: a resumed run draws what it would have drawn."""
    key = f"{rank.spec.seed}/{rank.num_steps}/{rank.rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)


def write_adapter(rank: Rank, folder: Path) -> int:
    """Write the current adapter in PEFT's layout; every rank calls it, rank 0 writes and makes the folder.

    `peft.PeftModel.from_pretrained` and vLLM's LoRA loader read it. Files of the same names are replaced.

    Returns:
        bytes of the weights, the same on every rank.

    Raises:
        ConfigError: the learner trains no adapter.
    """
    if rank.adapters is None:
        raise ConfigError("there is no adapter to write: learner.lora.r=0 trains all weights; set learner.lora.r")
    num_bytes = sum(
        torch.Size(full_shape(parameter)).numel() * parameter.dtype.itemsize for _, parameter in rank.adapters.weights()
    )
    tensors = {}
    for name, whole in rank.adapters.whole_weights():
        if rank.rank == 0:
            tensors[name] = whole.cpu()
    if rank.rank == 0:
        write_adapter_files(tensors, rank.adapters.peft_config, folder)
    return num_bytes


def write_adapter_files(tensors: dict[str, Tensor], peft_config: Any, folder: Path) -> None:
    """Write an adapter in PEFT's layout into `folder`, which is made where it is missing."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    written = copy.copy(peft_config)
    written.inference_mode = True  # as PEFT writes it: who loads the adapter decides whether it is trained further
    written.save_pretrained(str(folder))
