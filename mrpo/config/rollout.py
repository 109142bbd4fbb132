"""Sampling and the vLLM engines."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from mrpo.choices import Dtype
from mrpo.config.fields import STRICT, NonNegativeInt, Positive, PositiveInt, Share


@dataclass(kw_only=True, frozen=True, config=STRICT)
class RolloutConfig:
    """Sampling and the vLLM engines."""

    num_engines: PositiveInt = 1
    min_engines: PositiveInt | None = None  # a run begins when so many are up; null: num_engines
    max_engines: PositiveInt | None = None  # join when the cluster has room for them; null: num_engines
    resources: dict[str, Positive] = field(default_factory=dict)  # of Ray, claimed by each engine: pins them to nodes
    prompts_per_step: PositiveInt = 8
    group_size: Annotated[int, Field(ge=2)] = 8
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 1.0
    max_new_tokens: PositiveInt = 96
    max_model_len: PositiveInt = 256  # prompt with image tokens, and completion
    max_num_seqs: PositiveInt = 128  # per engine
    max_num_batched_tokens: PositiveInt = 8192  # prompt tokens that a GPU engine computes at once
    tensor_parallel: PositiveInt = 1
    gpu_memory_utilization: Share = 0.85
    kv_cache_gib: PositiveInt = 1  # CPU engines
    enforce_eager: bool = True
    dtype: Dtype = Dtype.AUTO
    cpu_cores: str | None = None  # cores the engine's threads are bound to, e.g. "0" or "0-3"; null: no binding
    max_staleness: NonNegativeInt = 0  # policy versions a completion may lag behind the learner; 0: strictly on-policy
    start_timeout_s: Positive = 300.0
    stall_timeout_s: Positive = 120.0  # no completion and no step for so long, while some are due: it is started again

    @property
    def engines_to_begin(self) -> int:
        """Engines that a run needs to begin."""
        return self.num_engines if self.min_engines is None else self.min_engines

    @property
    def engines_at_most(self) -> int:
        """Engines that a run may ever have."""
        return self.num_engines if self.max_engines is None else self.max_engines
