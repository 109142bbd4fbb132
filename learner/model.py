"""Loading the policy: a Hugging Face folder becomes a model and a processor of a known family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from learner.attention import implementation
from mrpo.checkpoint_source import model_type_of
from mrpo.choices import Attention, Dtype
from mrpo.families import Family, family_of


def family_in(folder: str) -> Family:
    """The family of the model in `folder`, read from its `config.json`.

    Raises:
        ConfigError: no model there, or an unsupported family.
    """
    return family_of(model_type_of(Path(folder)))


def torch_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The training dtype a configuration asks for; `auto` is float32 on CPU and bfloat16 on GPU."""
    if dtype == Dtype.AUTO:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16}[dtype]


def load_model(
    folder: str,
    family: Family,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: Attention = Attention.AUTO,
    gradient_checkpointing: bool = False,
) -> Any:
    """The causal model of `folder`, in training mode, on `device`; its language model takes packed rows.

    Raises:
        ConfigError: flash-attn is asked for where it cannot run.
    """
    kernels = implementation(attention, device=device, dtype=dtype)
    model = getattr(transformers, family.model_class).from_pretrained(folder, dtype=dtype, attn_implementation=kernels)
    if gradient_checkpointing:
        # The re-entrant variant needs an input that requires grad, which a frozen vision tower does not have.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    flatten_patch_convolutions(model)
    return model.to(device).train()


class PatchConv3d(nn.Conv3d):
    """A convolution whose input is exactly one kernel large: a matrix product, which is several times faster."""

    def forward(self, input: Tensor) -> Tensor:
        """[patches, C, t, p, p] → [patches, out, 1, 1, 1]."""
        product = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return product[:, :, None, None, None]


def flatten_patch_convolutions(model: nn.Module) -> None:
    """Let the patch embeddings of the Qwen families compute as matrix products; parameters stay as they are."""
    for name, module in model.named_modules():
        if type(module) is nn.Conv3d and name.endswith("patch_embed.proj"):
            module.__class__ = PatchConv3d


def freeze_vision(model: Any, family: Family, *, tower: bool, projector: bool) -> None:
    """Take the vision tower, its projector or both out of training."""
    for name, parameter in model.named_parameters():
        is_projector = name.startswith(family.projector_prefixes)
        is_tower = name.startswith(family.vision_prefixes) and not is_projector
        if (is_projector and projector) or (is_tower and tower):
            parameter.requires_grad_(False)


def load_processor(folder: str, family: Family) -> Any:
    """Tokenizer and image processor of `folder`."""
    return getattr(transformers, family.processor_class).from_pretrained(folder)
