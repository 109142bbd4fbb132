"""Attention over samples packed into one row: each sees itself alone, and no [L, L] mask is ever made.

Letters: L tokens of the packed row, D dimension of a head, n samples of equal length. A row's samples are told by the
keyword arguments of `boundaries`, which transformers hands down unread from the language model to its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from mrpo.choices import Attention
from mrpo.errors import ConfigError

FLASH = "flash_attention_2"
PACKED_SDPA = "packed_sdpa"  # PyTorch's SDPA, sample after sample
PACKED_VARLEN = "packed_varlen"  # the flash kernel that comes with PyTorch, all samples at once
HALF = (torch.float16, torch.bfloat16)  # what flash kernels compute in


def implementation(attention: Attention, *, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """`attn_implementation` as `from_pretrained` takes it, part by part: the vision tower's samples are not packed.

    Raises:
        ConfigError: flash-attn is asked for where it cannot run.
    """
    language = vision = FLASH
    if attention == Attention.FLASH_ATTENTION_2:
        _require_flash(device, dtype)
    elif attention == Attention.SDPA or not _has_flash(device, dtype):
        varlen = attention == Attention.AUTO and _has_varlen(device, dtype)
        language, vision = PACKED_VARLEN if varlen else PACKED_SDPA, "sdpa"
    return {"": vision, "text_config": language, "vision_config": vision}


def boundaries(lengths: Sequence[int], cu_seq_lens: Tensor) -> dict[str, Any]:
    """What the language model's attention must know of a packed row.

    Args:
        lengths: tokens of each sample, in the row's order.
        cu_seq_lens: [samples + 1] int32, where they start and the last one ends, on the row's device.
    """
    return {
        "cu_seq_lens_q": cu_seq_lens,  # the names flash-attn's integration in transformers reads
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "sample_lengths": tuple(lengths),  # plain numbers: reading them back from a GPU would stall every layer
    }


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sample_lengths: tuple[int, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal SDPA of each sample; neighbours of equal length go together.

    Args:
        module: the attention layer.
        query: [1, heads, L, D]; `key` and `value` [1, key-value heads, L, D].
        attention_mask: None, always: transformers makes none for an attention it does not know.
        sample_lengths: tokens of each sample; they sum to L.

    Returns:
        [1, L, heads, D], and no weights.

    Raises:
        ConfigError: a sliding window shorter than a sample.
    """
    assert attention_mask is None and sum(sample_lengths) == query.shape[2]
    _refuse_window(sliding_window, max(sample_lengths))
    runs = [(length, len(list(group))) for length, group in groupby(sample_lengths)]
    sizes = [length * count for length, count in runs]
    # One split, not a slice a run: the gradient of a slice is as large as the whole row.
    parts = zip(runs, *(torch.split(tensor[0], sizes, dim=1) for tensor in (query, key, value)), strict=True)
    outputs = []
    for (length, count), *rows in parts:
        q, k, v = (row.unflatten(1, (count, length)).transpose(0, 1) for row in rows)  # [n, heads, length, D]
        output, _weights = sdpa_attention_forward(
            module, q, k, v, None, dropout=dropout, scaling=scaling, is_causal=True
        )
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[None], None


def packed_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `packed_sdpa`, in one call of the flash kernel that comes with PyTorch, which knows no dropout."""
    if dropout > 0.0:
        return packed_sdpa(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    assert attention_mask is None
    _refuse_window(sliding_window, max_length_q)
    groups = query.shape[1] // key.shape[1]
    # Its documented shapes have as many key-value heads as query heads.
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, repeat_kv(key, groups), repeat_kv(value, groups)))
    output = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0)
    )
    assert isinstance(output, Tensor)
    return output[None], None


def _refuse_window(sliding_window: int | None, longest: int) -> None:
    if sliding_window is not None and longest > sliding_window:
        raise ConfigError(
            f"the model attends over a sliding window of {sliding_window} tokens, but a sample has {longest}; packed "
            "attention without flash-attn supports none: set learner.attention=flash_attention_2, or shorten samples"
        )


def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in HALF and find_spec("flash_attn") is not None


def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """PyTorch's flash kernel needs an NVIDIA GPU of compute capability 8.0 or later."""
    return device.type == "cuda" and dtype in HALF and torch.cuda.get_device_capability(device) >= (8, 0)


def _require_flash(device: torch.device, dtype: torch.dtype) -> None:
    wrong = ""
    if device.type != "cuda":
        wrong = f"the learner's device is {device.type}, and flash-attn needs a GPU"
    elif dtype not in HALF:
        wrong = (
            f"the learner computes in {str(dtype).removeprefix('torch.')}, and flash-attn needs learner.dtype=bfloat16"
        )
    elif find_spec("flash_attn") is None:
        wrong = "the package flash-attn is not installed"
    if wrong:
        raise ConfigError(f"learner.attention=flash_attention_2, but {wrong}; set learner.attention=auto or sdpa")


ATTENTIONS: dict[str, Callable[..., tuple[Tensor, None]]] = {PACKED_SDPA: packed_sdpa, PACKED_VARLEN: packed_varlen}

for _name, _function in ATTENTIONS.items():
    AttentionInterface.register(_name, _function)
