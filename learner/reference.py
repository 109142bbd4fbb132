"""The frozen model the KL penalty measures against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.inputs import MicroBatch
from learner.policy import Policy
from learner.weight_source import gathered


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

    @torch.no_grad()
    def copy_from(self, model: Any) -> None:
        """Take the weights of `model`; a collective at ZeRO-3."""
        for mine, other in zip(self.model.parameters(), model.parameters(), strict=True):
            with gathered(other), gathered(mine, writer=0):
                mine.data.copy_(other.data)
