"""Log-probs and entropy of chosen tokens without the logits of a whole batch.

Letters: N tokens, H hidden size, V vocabulary, n tokens of one chunk, r of its rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

SLICES = 16  # of a chunk: what is calculated from its logits exists for one slice at a time
CACHED_ELEMENTS = 2**20  # 4 MiB of float32: a CPU's slice is no larger, so that its cache holds it from pass to pass


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and the entropy of the distributions they were drawn from.

    Logits exist for `chunk_tokens` tokens at a time; the backward pass computes them again. Beyond the gradients of
    `hidden` and of the head it needs the logits of one chunk forward, and those and their gradient backward, both in
    the head's number format; and an eighth of the chunk's float32 logits for statistics, if it has 16 tokens or more.
    Where the gradients of chunks meet, when no logits exist, the head's own exists three times for a moment.

    The head is called as a module, in both passes, because ZeRO-3 gathers its weight in the module's hooks. Liger's
    LigerFusedLinearScaledCrossEntropyFunction (nll and entropy of each token) would fit behind this function on GPUs
    for a linear head without bias under ZeRO 0 to 2: it reads the weight itself, which ZeRO-3 leaves empty.

    Args:
        hidden: [N, H] states that predict the targets.
        targets: [N] int64.
        head: [n, H] → [n, V] logits. A logit of -inf bans its token.
        chunk_tokens: tokens of one chunk, at least 1.

    Returns:
        log-probs [N], nats, differentiable once; entropy [N], nats, without gradient. Both are float32, calculated in
        float32 (float64 where the logits are).
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
    logprobs, entropy = SelectedLogprobs.apply(head(hidden), targets)
    return logprobs, entropy


class SelectedLogprobs(torch.autograd.Function):
    """Logits [n, V] and targets [n] → log-probs of the targets [n] and entropy [n], which has no gradient.

    d logprob / d logits = onehot(target) − softmax(logits).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Row statistics, slice by slice, in float32 or better."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        top, log_sum, logprobs, entropy = (logits.new_empty(len(logits), dtype=dtype) for _ in range(4))
        shifted_rows, exp_rows = (logits.new_empty(_slice_rows(logits), logits.shape[1], dtype=dtype) for _ in range(2))
        for rows in _slices(logits):
            part = logits[rows]
            size = len(part)
            top[rows] = part.amax(-1)
            shifted = torch.sub(part, top[rows, None], out=shifted_rows[:size])
            exp = torch.exp(shifted, out=exp_rows[:size])
            total = exp.sum(-1)
            log_sum[rows] = total.log()
            # Relative to the largest logit: with a log-sum-exp of 1e4, float32 would lose the fourth digit.
            logprobs[rows] = shifted.gather(1, targets[rows, None])[:, 0] - log_sum[rows]
            # A banned token contributes 0 · -inf, which is 0 here and NaN in floating point.
            shifted.clamp_(min=torch.finfo(dtype).min)
            entropy[rows] = log_sum[rows] - torch.linalg.vecdot(exp, shifted) / total
        ctx.save_for_backward(logits, targets, top, log_sum)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """The gradient in the logits' number format.

        It gets a buffer of its own. Writing it over the logits would save that, but the head may need them for its own
        backward pass (a soft cap keeps its result), and recomputed tensors are not guarded against such writes.
        """
        logits, targets, top, log_sum = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        scratch = None if logits.dtype == top.dtype else top.new_empty(_slice_rows(logits), logits.shape[1])
        for rows in _slices(logits):
            part, weight = logits[rows], grad_logprobs[rows, None]
            grad = grad_logits[rows] if scratch is None else scratch[: len(part)]
            torch.sub(part, top[rows, None], out=grad)
            grad.sub_(log_sum[rows, None]).exp_().mul_(-weight).scatter_add_(1, targets[rows, None], weight)
            if scratch is not None:
                grad_logits[rows] = grad
        return grad_logits, None


def _slice_rows(logits: Tensor) -> int:
    n, vocabulary = logits.shape
    rows = n // SLICES if logits.device.type != "cpu" else min(n // SLICES, CACHED_ELEMENTS // vocabulary)
    return max(1, rows)


def _slices(logits: Tensor) -> Iterator[slice]:
    step = _slice_rows(logits)
    return (slice(start, start + step) for start in range(0, len(logits), step))
