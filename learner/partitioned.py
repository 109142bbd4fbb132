"""Whole parameters where ZeRO-3 leaves a rank only its part of each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape of the whole parameter, at any ZeRO stage."""
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def gathered(*parameters: nn.Parameter, writer: int | None = None) -> AbstractContextManager[Any]:
    """A context in which the parameters are whole; with `writer`, that rank's changes are kept.

    A collective at ZeRO-3. Outside the context a gathered parameter loses its storage.
    """
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    whole: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(partitioned, modifier_rank=writer)
    return whole


def whole_copy(parameter: nn.Parameter) -> Tensor:
    """A copy of the whole parameter; a collective at ZeRO-3."""
    with gathered(parameter):
        return parameter.detach().clone()
