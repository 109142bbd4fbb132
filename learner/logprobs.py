"""Log-probs and entropy of chosen tokens without the logits of a whole batch.

Letters: N tokens, H hidden size, V vocabulary, n tokens of one chunk, r of its rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

SLICES = 16  # of a chunk: what is calculated from its logits exists for one slice at a time
CACHED_ELEMENTS = 2**20  # 4 MiB of float32: a CPU's slice is no larger, so that its cache holds it from pass to pass


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and the entropy of the distributions they were drawn from.

    Logits exist for `chunk_tokens` tokens at a time; the backward pass computes them again, unless one chunk holds all
    tokens. Peak memory in chunks, one chunk's logits in the head's number format, beyond the gradients of `hidden` and
    of the head; add 3/16 of the chunk's float32 logits for statistics, from 16 tokens a chunk on:

    - A plain linear head: 1 forward, 1 backward, whatever H is. One buffer takes the gradient of each chunk in turn.
    - Any other linear head: 1 forward; backward 2 or twice the head's gradient, whichever is larger, because autograd
      holds a sum, a summand and, when no logits exist, their new sum. In float32 that is 4 chunks up to H = twice
      `chunk_tokens`. What a head such as a soft cap keeps of its own logits comes on top.
    - All tokens in one chunk: 1 forward, 2 backward.
    - A frozen head, as under LoRA, gets no gradient: called, it needs 2 backward, whatever H is.

    Plain is an `nn.Linear` itself, whole, outside autocast, without hooks or a forward of its own: the head under ZeRO
    0 to 2. (It is not called: hooks for all modules of the process pass it by.) Others are called as modules, in both
    passes, because ZeRO-3 gathers the weight in the module's hooks. The gradient of a plain head has the weight's
    number format: in bfloat16 a chunk is added in float32 and the sum rounded, once a chunk, where autograd would round
    the summand too. A float32 buffer would avoid that, for twice the memory of the gradient.

    Liger's LigerFusedLinearScaledCrossEntropyFunction (nll and entropy of each token) would fit behind this function on
    GPUs for a plain head without bias.

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
    if _is_plain_linear(head, hidden.device):
        logprobs, entropy = LinearLogprobs.apply(hidden, head.weight, head.bias, targets, chunk_tokens)
        return logprobs, entropy
    parts = [
        checkpoint(_chunk, states, ids, head, use_reentrant=False)
        for states, ids in zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
    ]
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _chunk(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    logprobs, entropy = SelectedLogprobs.apply(head(hidden), targets)
    return logprobs, entropy


def _is_plain_linear(head: Callable[[Tensor], Tensor], device: torch.device) -> TypeGuard[nn.Linear]:
    """Whether calling the head is `linear(hidden, weight, bias)` and nothing else, with the weight at hand."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:  # a subclass may shard or quantise
        return False
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    replaced = any(hooks) or "forward" in vars(head)
    partitioned = hasattr(head.weight, "ds_id")  # ZeRO-3 leaves the weight empty between calls
    return not (replaced or partitioned or torch.is_autocast_enabled(device.type))


class SelectedLogprobs(torch.autograd.Function):
    """Logits [n, V] and targets [n] → log-probs of the targets [n] and entropy [n], which has no gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the logits."""
        logprobs, entropy, top, log_sum = _statistics(logits, targets)
        ctx.save_for_backward(logits, targets, top, log_sum)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """The gradient gets a buffer of its own.

        Writing it over the logits would save that, but the head may need them for its own backward pass (a soft cap
        keeps its result), and recomputed tensors are not guarded against such writes.
        """
        logits, targets, top, log_sum = ctx.saved_tensors
        return _logits_gradient(logits, targets, top, log_sum, grad_logprobs, out=torch.empty_like(logits)), None


class LinearLogprobs(torch.autograd.Function):
    """hidden [N, H], weight [V, H], bias [V] or None, targets [N] → log-probs [N] and entropy [N], chunk by chunk.

    Being one function for all chunks, it adds their gradients of weight and bias into one buffer each.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Keeps two numbers a token, no logits."""
        parts = [
            # No name holds the logits, so that a chunk's are gone before the next one's exist.
            _statistics(linear(states, weight, bias), ids)
            for states, ids in zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
        ]
        logprobs, entropy, top, log_sum = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, targets, top, log_sum)
        ctx.chunk_tokens = chunk_tokens
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of what wants one; a chunk's logits are overwritten by theirs, which `linear` allows."""
        hidden, weight, bias, targets, top, log_sum = ctx.saved_tensors
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        grad_hidden, grad_weight, grad_bias = (torch.zeros_like(leaf) if wants else None for leaf, wants in wanted)
        for start in range(0, len(hidden), ctx.chunk_tokens):
            rows = slice(start, start + ctx.chunk_tokens)
            logits = linear(hidden[rows], weight, bias)
            grad = _logits_gradient(logits, targets[rows], top[rows], log_sum[rows], grad_logprobs[rows], out=logits)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), hidden[rows])
            if grad_bias is not None:
                grad_bias.add_(grad.sum(0))
            del logits, grad  # before the next chunk's exist
        return grad_hidden, grad_weight, grad_bias, None, None


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-prob of the target, entropy, largest logit, and log-sum-exp relative to it, each [n]; float32 or better."""
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
    return logprobs, entropy, top, log_sum


def _logits_gradient(
    logits: Tensor, targets: Tensor, top: Tensor, log_sum: Tensor, grad_logprobs: Tensor, *, out: Tensor
) -> Tensor:
    """The gradient, in `out` [n, V], which may be `logits`: d logprob / d logits = onehot(target) − softmax(logits)."""
    scratch = None if logits.dtype == top.dtype else top.new_empty(_slice_rows(logits), logits.shape[1])
    for rows in _slices(logits):
        part, weight = logits[rows], grad_logprobs[rows, None]
        grad = out[rows] if scratch is None else scratch[: len(part)]
        torch.sub(part, top[rows, None], out=grad)
        grad.sub_(log_sum[rows, None]).exp_().mul_(-weight).scatter_add_(1, targets[rows, None], weight)
        if scratch is not None:
            out[rows] = grad
    return out


def _slice_rows(logits: Tensor) -> int:
    n, vocabulary = logits.shape
    rows = n // SLICES if logits.device.type != "cpu" else min(n // SLICES, CACHED_ELEMENTS // vocabulary)
    return max(1, rows)


def _slices(logits: Tensor) -> Iterator[slice]:
    step = _slice_rows(logits)
    return (slice(start, start + step) for start in range(0, len(logits), step))
