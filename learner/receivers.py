"""Who receives weights. Light: the driver makes it without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mrpo.choices import WeightTransfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """The engines of one transfer. Group → ranks."""

    engines: tuple[Any, ...]  # Ray actor handles with vLLM's four weight-transfer methods
    transfer: WeightTransfer
    ranks_per_engine: int  # processes of one engine

    @property
    def ids(self) -> tuple[str, ...]:
        """Which engines they are; another set of them needs another transfer group."""
        return tuple(engine._actor_id.hex() for engine in self.engines)
