"""A vLLM logits processor that keeps forbidden tokens out of every request.

It is part of the engine and no request can forget it. Its cost does not depend on the number of requests, and -inf
stays -inf whatever biases a request adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADDITIONAL_CONFIG_KEY = "mrpo_banned_token_ids"  # in vLLM's `additional_config`


class TokenBans(LogitsProcessor):
    """Log-probs that vLLM reports are raw, that is before this mask."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        assert isinstance(vllm_config.additional_config, dict)
        banned: list[int] = vllm_config.additional_config[ADDITIONAL_CONFIG_KEY]
        self._banned = torch.tensor(banned, dtype=torch.long, device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask [rows, vocabulary] in place."""
        return logits.index_fill_(1, self._banned, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        """A banned token may be the likeliest one."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """The mask is the same for every request."""
