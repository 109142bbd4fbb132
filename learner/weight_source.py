"""Full weights under the names of a saved checkpoint, which are what vLLM's loader and transformers expect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from learner.lora import Adapters, plain_parameters
from learner.partitioned import full_shape, whole_copy
from mrpo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMeta:
    """One tensor that will be sent or saved."""

    name: str  # as in a saved checkpoint
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the full tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def saved_names(model: Any, adapters: Adapters | None = None) -> dict[str, str]:
    """Checkpoint name of each of the model's own parameter names, as they are without adapters; tied weights have one.

    Live and saved names differ (`model.visual.…` against `visual.…`), and transformers keeps the rules. They are asked
    with numbered scalars in place of weights, so that nothing is gathered or copied.

    Raises:
        ConfigError: the family's checkpoints are not a renaming of its parameters.
    """
    live = [name for name, _, _ in plain_parameters(model, adapters)]
    saved = revert_weight_conversion(model, {name: torch.tensor(number) for number, name in enumerate(live)})
    names = {live[int(number)]: name for name, number in saved.items() if number.ndim == 0}
    if len(names) != len(live) or len(saved) != len(live):
        raise ConfigError(
            f"model type {model.config.model_type!r}: its checkpoint merges or splits parameters, which weight "
            "export does not support; use a family listed in mrpo/families.py"
        )
    return names


class WeightSource:
    """The model's weights, re-iterable, with adapters merged into the layers they adapt.

    Every rank must iterate in lockstep, because ZeRO-3 gathers each tensor.
    """

    def __init__(self, model: Any, adapters: Adapters | None = None) -> None:
        self._model = model
        self._adapters = adapters
        self._names = saved_names(model, adapters)

    def metadata(self) -> list[WeightMeta]:
        """What iteration will yield, in its order; nothing is gathered."""
        return [
            WeightMeta(name=self._names[live], dtype=parameter.dtype, shape=full_shape(parameter))
            for live, parameter, _ in plain_parameters(self._model, self._adapters)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (checkpoint name, full tensor). A tensor must be used before the next training step."""
        for live, parameter, layer in plain_parameters(self._model, self._adapters):
            if layer is not None:
                assert self._adapters is not None
                tensor = self._adapters.merged(layer)
            else:
                # A gathered parameter is no longer there when the caller looks at it.
                tensor = whole_copy(parameter) if hasattr(parameter, "ds_id") else parameter.detach()
            yield self._names[live], tensor
