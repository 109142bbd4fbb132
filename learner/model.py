"""Loading the policy: a Hugging Face folder becomes a model and a processor of a known family."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from learner.attention import implementation
from learner.buffers import compute_buffers_again
from mrpo.checkpoint_source import model_type_of
from mrpo.choices import Attention, Dtype
from mrpo.errors import ConfigError
from mrpo.families import Family, family_of
from mrpo.images import set_up_processor
from mrpo.weight_files import ties_embeddings

log = logging.getLogger(__name__)

SIZE_MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[([\d, ]*)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[([\d, ]*)\]\)"
)


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
        ConfigError: flash-attn is asked for where it cannot run; a weight is missing or has another shape.
    """
    kernels = implementation(attention, device=device, dtype=dtype)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = ties_embeddings(Path(folder))
    options = {"config": config, "dtype": dtype, "attn_implementation": kernels}
    model = _whole_model(getattr(transformers, family.model_class), folder, **options)
    if is_deepspeed_zero3_enabled():  # what partitions weights as they are made casts every tensor that is made
        compute_buffers_again(model)
    if gradient_checkpointing:
        # The re-entrant variant needs an input that requires grad, which a frozen vision tower does not have.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    flatten_patch_convolutions(model)
    return model.to(device).train()


def _whole_model(model_class: Any, folder: str, **options: Any) -> Any:
    """The model with every weight from the checkpoint; transformers would draw missing ones at random, and warn."""
    try:
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except RuntimeError as error:
        # ZeRO-3 has a loader of its own, which raises what the other one lists.
        found = SIZE_MISMATCH.search(str(error))
        if found is None:
            raise
        info = {"missing_keys": [], "mismatched_keys": [tuple(found.groups())]}
        model = None
    wrong = [
        f"{name} has shape {_shape(stored)} there and {_shape(expected)} in the model"
        for name, stored, expected in sorted(info["mismatched_keys"])
    ] or [f"{name} is missing" for name in sorted(info["missing_keys"])]
    if wrong:
        more = f", and {len(wrong) - 1} more weights are wrong" if len(wrong) > 1 else ""
        raise ConfigError(
            f"the weights in {folder} do not make its config.json's model: {wrong[0]}{more}; copy the checkpoint "
            "again, config.json and all weight files from one source"
        )
    if info["unexpected_keys"]:
        unused = sorted(info["unexpected_keys"])
        log.warning(
            "%d weights in %s have no place in the model and are not used, e.g. %s", len(unused), folder, unused[0]
        )
    return model


def _shape(shape: Any) -> str:
    """`[2, 3]` of a torch size, or of its text."""
    return str(list(shape)) if not isinstance(shape, str) else f"[{shape}]"


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


def load_processor(folder: str, family: Family, *, max_pixels: int, max_tiles: int | None) -> Any:
    """Tokenizer and image processor of `folder`, which takes images as `model.max_pixels` and `max_tiles` say.

    Raises:
        ConfigError: `max_tiles` for a family without tiles.
    """
    processor = getattr(transformers, family.processor_class).from_pretrained(folder)
    set_up_processor(processor, family, max_pixels=max_pixels, max_tiles=max_tiles)
    return processor
