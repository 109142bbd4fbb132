"""Log-probs and entropy of chosen tokens without the logits of a whole batch.

Letters: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and the entropy of the distributions they were drawn from.

    Logits exist for `chunk_tokens` tokens at a time, in float32; the backward pass computes them again.

    Args:
        hidden: [N, H] states that predict the targets.
        targets: [N] int64.
        head: [n, H] → [n, V] logits; the output layer as a module, so that ZeRO-3 gathers its weight.
        chunk_tokens: tokens of one chunk, at least 1.

    Returns:
        log-probs [N] float32, nats, differentiable; entropy [N] float32, nats, without gradient.
    """
    if hidden.shape[0] <= chunk_tokens:
        return _chunk(hidden, targets, head)
    parts = [
        checkpoint(_chunk, states, ids, head, use_reentrant=False)
        for states, ids in zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
    ]
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _chunk(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(head(hidden).float(), dim=-1)  # [n, V]
    with torch.no_grad():
        entropy = -torch.einsum("nv,nv->n", log_probs.exp(), log_probs)
    return log_probs.gather(1, targets[:, None])[:, 0], entropy
