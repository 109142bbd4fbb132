"""AdamW under DeepSpeed: making it, priming its moments and reading or setting full tensors at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from learner.partitioned import full_shape
from mrpo.config import LearnerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class ClippingAdamW(torch.optim.AdamW):
    """AdamW that clips and refuses a non-finite gradient itself; for training without ZeRO.

    `overflow` and `_global_grad_norm` are the names under which DeepSpeed's own optimizers report both.
    """

    def __init__(self, params: Any, *, max_grad_norm: float, **options: Any) -> None:
        super().__init__(params, **options)
        self._max_grad_norm = max_grad_norm
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip and update; a non-finite norm leaves weights and moments as they are."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
        self._global_grad_norm = norm
        self.overflow = not norm < float("inf")
        if not self.overflow:
            super().step(closure)


def make_optimizer(model: nn.Module, learner: LearnerConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; weight decay leaves out biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": learner.lr, "betas": learner.adam_betas, "eps": learner.adam_eps, "fused": True}
    groups: list[dict[str, Any]] = [{"params": trainable, "weight_decay": 0.0}]
    if learner.weight_decay > 0.0:
        groups = [
            {"params": [p for p in trainable if _rank(p) >= 2], "weight_decay": learner.weight_decay},
            {"params": [p for p in trainable if _rank(p) < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]  # adapters have no biases
    if learner.zero_stage == 0:
        return ClippingAdamW(groups, max_grad_norm=learner.max_grad_norm, **options)
    return torch.optim.AdamW(groups, **options)


def _rank(parameter: nn.Parameter) -> int:
    """Number of dimensions; under ZeRO-3 a parameter itself is an empty vector."""
    return len(full_shape(parameter))


class OptimizerState:
    """Full-tensor view of a DeepSpeed engine's master weights and AdamW moments."""

    def __init__(self, engine: Any, stage: int) -> None:
        self._engine = engine
        self._stage = stage
        self._prime()

    def _base(self) -> torch.optim.Optimizer:
        base: torch.optim.Optimizer = self._engine.optimizer if self._stage == 0 else self._engine.optimizer.optimizer
        return base

    def _flat(self) -> Iterator[Tensor]:
        """The tensors the base optimizer steps over: parameters, or this rank's flat partitions."""
        if self._stage == 3:
            yield from self._engine.optimizer.fp32_partitioned_groups_flat
        else:
            for group in self._base().param_groups:
                yield from group["params"]

    def _prime(self) -> None:
        """Create zero moments now, as a first step would, so that they can be read and set before one."""
        for tensor in self._flat():
            self._base().state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                **{name: torch.zeros_like(tensor, memory_format=torch.preserve_format) for name in MOMENTS},
            }
        if self._stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def reset(self) -> None:
        """Forget all moments and the step count; in place, because DeepSpeed holds views of them."""
        for state in self._base().state.values():
            for tensor in state.values():
                tensor.zero_()

    @property
    def num_steps(self) -> int:
        """Steps AdamW has counted, for its bias correction."""
        return int(next(iter(self._base().state.values()))["step"])

    def set_num_steps(self, num_steps: int) -> None:
        """Set AdamW's count."""
        for state in self._base().state.values():
            state["step"].fill_(num_steps)

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        """The full moment of a trainable parameter; a collective."""
        full: Tensor = (
            self._base().state[parameter][name] if self._stage == 0 else safe_get_full_optimizer_state(parameter, name)
        )
        return full

    def set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Set the full moment of a trainable parameter; every rank passes the same value."""
        if self._stage == 0:
            self._base().state[parameter][name].copy_(value)
        elif self._stage == 3:
            safe_set_local_optimizer_state(parameter, _own_part(parameter, value), name)
        else:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)

    def master(self, parameter: nn.Parameter) -> Tensor:
        """The full float32 weight of a trainable parameter; a collective."""
        full: Tensor = parameter.detach() if self._stage == 0 else safe_get_full_fp32_param(parameter)
        return full

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the full float32 weight of a trainable parameter; the model's copy follows with `sync_model`."""
        if self._stage == 0:
            parameter.data.copy_(value)
        elif self._stage == 3:
            safe_set_local_fp32_param(parameter, _own_part(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value.to(parameter.device))

    def sync_model(self) -> None:
        """Copy master weights into the parameters the forward pass uses; a collective. ZeRO-3 has no such call."""
        if self._stage in (1, 2):
            self._engine.optimizer.update_lp_params()


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's partition of a full tensor under ZeRO-3.

    DeepSpeed's own setter of full tensors fails on a size that the number of ranks does not divide.
    """
    size = parameter.ds_tensor.ds_numel
    part = torch.zeros(size, dtype=value.dtype)
    mine = value.flatten()[torch.distributed.get_rank() * size :][:size]
    part[: mine.numel()] = mine
    return part.to(parameter.ds_tensor.device)
