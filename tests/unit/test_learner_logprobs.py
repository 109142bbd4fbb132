"""Chunked log-probs against the plain computation over all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learner.logprobs import token_logprobs

N, H, V = 11, 6, 13


def case(seed: int = 0) -> tuple[Tensor, Tensor, nn.Linear]:
    """hidden [N, H] float64 that wants a gradient, targets [N], head."""
    torch.manual_seed(seed)
    head = nn.Linear(H, V, bias=False).double()
    return torch.randn(N, H, dtype=torch.float64, requires_grad=True), torch.randint(V, (N,)), head


@pytest.mark.parametrize("chunk_tokens", [1, 3, N - 1, N, 100])
def test_values_and_gradients_equal_the_plain_computation(chunk_tokens: int) -> None:
    hidden, targets, head = case()
    weights = torch.randn(N)
    plain = head(hidden).float().log_softmax(-1)
    expected = plain.gather(1, targets[:, None])[:, 0]
    wanted = torch.autograd.grad((expected * weights).sum(), [hidden, head.weight])

    logprobs, entropy = token_logprobs(hidden, targets, head, chunk_tokens=chunk_tokens)
    found = torch.autograd.grad((logprobs * weights).sum(), [hidden, head.weight])

    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1).detach())
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_entropy_of_a_uniform_distribution_is_log_v_and_has_no_gradient() -> None:
    hidden, targets, head = case()
    _, entropy = token_logprobs(hidden * 0.0, targets, head, chunk_tokens=4)
    torch.testing.assert_close(entropy, torch.full((N,), V, dtype=torch.float32).log())
    assert not entropy.requires_grad


def test_no_more_logits_exist_at_a_time_than_a_chunk_has_tokens() -> None:
    hidden, targets, head = case()
    sizes: list[int] = []

    def watched(states: Tensor) -> Tensor:
        sizes.append(states.shape[0])
        return head(states)

    logprobs, _ = token_logprobs(hidden, targets, watched, chunk_tokens=4)
    forward = len(sizes)
    logprobs.sum().backward()
    assert max(sizes) == 4
    assert len(sizes) == 2 * forward, "the backward pass computes the logits again instead of keeping them"


def test_no_tokens_give_empty_results() -> None:
    hidden, targets, head = case()
    logprobs, entropy = token_logprobs(hidden[:0], targets[:0], head, chunk_tokens=4)
    assert logprobs.shape == entropy.shape == (0,)
