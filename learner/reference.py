"""What the KL penalty measures against: a frozen copy of the policy, or under LoRA the policy without its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from learner.inputs import MicroBatch
from learner.lora import Adapters
from learner.partitioned import gathered, whole_copy
from learner.policy import Policy
from mrpo.errors import ConfigError


class Reference:
    """A frozen policy; under ZeRO-3 partitioned like the trained one."""

    def __init__(self, policy: Policy, *, config: dict[str, Any] | None) -> None:
        """Freeze `policy`; with a DeepSpeed `config` its parameters are partitioned over the ranks."""
        policy.requires_grad_(False).eval()
        self._policy = policy
        self._forward: Any = policy
        if config is not None:
            import deepspeed

            self._forward, *_ = deepspeed.initialize(model=policy, config=config)
            self._forward.eval()

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch) -> Tensor:
        """[B, T] float32 nats of the completion tokens."""
        logprobs: Tensor
        logprobs, _ = self._forward(batch)
        return logprobs

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self._policy.model

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) of all weights; a collective at ZeRO-3."""
        for name, parameter in self.model.named_parameters():
            yield name, whole_copy(parameter) if hasattr(parameter, "ds_id") else parameter.detach()

    @torch.no_grad()
    def copy_from(self, model: Any) -> None:
        """Take the weights of `model`; a collective at ZeRO-3."""
        for mine, other in zip(self.model.parameters(), model.parameters(), strict=True):
            with gathered(other), gathered(mine, writer=0):
                mine.data.copy_(other.data)


class BaseReference:
    """The base model of a policy with adapters: the same weights, no second copy."""

    def __init__(self, adapters: Adapters, engine: Any) -> None:
        """`engine` is DeepSpeed's wrapper of the policy."""
        self._adapters = adapters
        self._engine = engine

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch) -> Tensor:
        """[B, T] float32 nats of the completion tokens."""
        logprobs: Tensor
        with self._adapters.off():
            logprobs, _ = self._engine(batch)
        return logprobs

    def copy_from(self, model: Any) -> None:
        """Raises `ConfigError`: what adapters have learned cannot become the base under them."""
        raise ConfigError(
            "with adapters the KL reference is the base model, which cannot take over what they have learned; train "
            "with algorithm.loss.beta=0 or learner.lora.r=0, and start the next training from the merged checkpoint"
        )
