"""Chunked log-probs against the plain computation over all logits."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from learner import logprobs as module
from learner.logprobs import LinearLogprobs, SelectedLogprobs, token_logprobs

N, H, V = 37, 6, 13
CHUNKS = [1, 7, N - 1, N, N + 1, 1000]
HEADS = pytest.mark.parametrize("as_module", [False, True], ids=["plain", "module"])


def case(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, nn.Linear]:
    """hidden [N, H] that wants a gradient, targets [N], head."""
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=bias, dtype=dtype)
    return torch.randn(N, H, dtype=dtype, requires_grad=True), torch.randint(V, (N,)), head


def seen_as(head: nn.Linear, as_module: bool) -> nn.Module:
    """The head itself, which is read directly, or one that is called as a module and gives the same."""
    return nn.Sequential(head) if as_module else head


def naive(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy from all logits at once."""
    log_probs = torch.log_softmax(head(hidden), -1)
    return log_probs.gather(1, targets[:, None])[:, 0], torch.special.entr(log_probs.exp()).sum(-1).detach()


@HEADS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_values_and_gradients_equal_the_naive_form(chunk_tokens: int, bias: bool, as_module: bool) -> None:
    hidden, targets, head = case(bias=bias)
    wanted = [hidden, *head.parameters()]
    weights = torch.randn(N)
    expected, expected_entropy = naive(hidden, targets, head)
    logprobs, entropy = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=1e-5)
    found = torch.autograd.grad((logprobs * weights).sum(), wanted)
    plain = torch.autograd.grad((expected * weights).sum(), wanted)
    for mine, other in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_two_tokens_by_hand() -> None:
    logits = torch.tensor([[math.log(1), math.log(3)], [0.0, 0.0]], requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([1, 0]), nn.Identity(), chunk_tokens=1)
    assert logprobs.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 2)])
    assert entropy.tolist() == pytest.approx([-(math.log(1 / 4) / 4 + 3 * math.log(3 / 4) / 4), math.log(2)])
    (gradient,) = torch.autograd.grad(logprobs @ torch.tensor([2.0, -1.0]), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5], [-0.5, 0.5]]))


@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_gradients_are_the_derivative(chunk_tokens: int) -> None:
    hidden, targets, head = case(bias=True, dtype=torch.float64)
    hidden = hidden[:5].detach().requires_grad_()

    def logprobs(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def linear(rows: Tensor) -> Tensor:
            return nn.functional.linear(rows, weight, bias)

        return token_logprobs(states, targets[:5], linear, chunk_tokens=chunk_tokens)[0]

    assert torch.autograd.gradcheck(logprobs, (hidden, head.weight, head.bias))

    def plain(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return LinearLogprobs.apply(states, weight, bias, targets[:5], chunk_tokens)[0]

    assert torch.autograd.gradcheck(plain, (hidden, head.weight, head.bias))
    logits = torch.randn(5, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: SelectedLogprobs.apply(rows, targets[:5])[0], (logits,))


def test_a_second_derivative_is_refused() -> None:
    hidden, targets, head = case()
    weights = torch.ones(N, requires_grad=True)
    from_logits, _ = SelectedLogprobs.apply(head(hidden), targets)
    from_hidden, _ = LinearLogprobs.apply(hidden, head.weight, None, targets, 7)
    for logprobs in (from_logits, from_hidden):
        (gradient,) = torch.autograd.grad((logprobs * weights).sum(), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


class WrittenHead(nn.Linear):
    """A subclass, whose forward is its own affair."""

    def forward(self, states: Tensor) -> Tensor:
        return 2.0 * super().forward(states)


def hooked(head: nn.Linear) -> nn.Module:
    head.register_forward_hook(lambda _, __, logits: 2.0 * logits)
    return head


def prepared(head: nn.Linear) -> nn.Module:
    head.register_forward_pre_hook(lambda _, inputs: (2.0 * inputs[0],))
    return head


def observed_backward(head: nn.Linear) -> nn.Module:
    head.register_full_backward_hook(lambda _, grad_inputs, __: tuple(2.0 * grad for grad in grad_inputs))
    return head


def prepared_backward(head: nn.Linear) -> nn.Module:
    head.register_full_backward_pre_hook(lambda _, grads: tuple(2.0 * grad for grad in grads))
    return head


def subclassed(head: nn.Linear) -> nn.Module:
    other = WrittenHead(H, V, bias=False)
    other.weight = head.weight
    return other


def replaced(head: nn.Linear) -> nn.Module:
    plain = head.forward
    head.forward = lambda states: 2.0 * plain(states)  # type: ignore[method-assign]
    return head


def parametrized(head: nn.Linear) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(head)


@pytest.mark.parametrize(
    "change", [hooked, prepared, observed_backward, prepared_backward, subclassed, replaced, parametrized]
)
def test_what_acts_in_a_heads_call_is_not_bypassed(change: Callable[[nn.Linear], nn.Module]) -> None:
    hidden, targets, linear = case()
    head = change(linear)
    expected, _ = naive(hidden, targets, head)
    found, _ = token_logprobs(hidden, targets, head, chunk_tokens=7)
    assert "LinearLogprobs" not in nodes(found)
    torch.testing.assert_close(found, expected)
    for mine, plain in zip(
        torch.autograd.grad(found.sum(), [hidden, *head.parameters()]),
        torch.autograd.grad(expected.sum(), [hidden, *head.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


def test_a_partitioned_weight_and_autocast_are_left_to_the_heads_call() -> None:
    hidden, targets, head = case()
    assert "LinearLogprobs" in nodes(token_logprobs(hidden, targets, head, chunk_tokens=7)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "LinearLogprobs" not in nodes(token_logprobs(hidden, targets, head, chunk_tokens=7)[0])
    head.weight.ds_id = 0  # what DeepSpeed's ZeRO-3 marks a parameter with
    assert "LinearLogprobs" not in nodes(token_logprobs(hidden, targets, head, chunk_tokens=7)[0])


def nodes(tensor: Tensor) -> str:
    """Names of the functions that made a tensor, the last two layers."""
    node = tensor.grad_fn
    assert node is not None
    return " ".join([node.name(), *(following.name() for following, _ in node.next_functions if following is not None)])


def test_a_weight_that_the_model_uses_elsewhere_gets_both_gradients() -> None:
    _, targets, head = case()
    ids = torch.randint(V, (N,))
    results = []
    for form in (naive, lambda *inputs: token_logprobs(*inputs, chunk_tokens=7)):
        logprobs, _ = form(nn.functional.embedding(ids, head.weight), targets, head)
        results.append(torch.autograd.grad(logprobs.sum(), head.weight)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_a_bfloat16_weights_gradient_is_no_worse_than_autograds_sum() -> None:
    torch.manual_seed(0)
    tokens, states, vocabulary = 512, 64, 512
    hidden, targets = torch.randn(tokens, states, dtype=torch.bfloat16), torch.randint(vocabulary, (tokens,))
    head = nn.Linear(states, vocabulary, bias=False, dtype=torch.bfloat16)
    weight = head.weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(naive(hidden.double() @ weight.T, targets, nn.Identity())[0].sum(), weight)
    errors = []
    for as_module in (False, True):
        logprobs, _ = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=64)
        (found,) = torch.autograd.grad(logprobs.sum(), head.weight)
        assert found.dtype == torch.bfloat16
        errors.append(float(torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact)))
    assert errors[0] < 1.05 * errors[1], "one rounding a chunk against two"
    assert errors[1] < 3 * 2**-9, "eight chunks, each rounded at 2⁻⁹ of a growing sum"


@HEADS
@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_slices_of_any_size_give_the_same(chunk_tokens: int, as_module: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets, head = case()
    results = []
    for slices in (1, 3, 1000):
        monkeypatch.setattr(module, "SLICES", slices)
        logprobs, entropy = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
        results.append((logprobs, entropy, *torch.autograd.grad(logprobs.sum(), [hidden, head.weight])))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@HEADS
@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_bfloat16_states_are_measured_in_float32(chunk_tokens: int, as_module: bool) -> None:
    hidden, targets, head = case(bias=True, dtype=torch.bfloat16)
    logits = head(hidden).detach().float()
    expected, expected_entropy = naive(logits, targets, nn.Identity())
    logprobs, entropy = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    logprobs.sum().backward()
    grad_logits = nn.functional.one_hot(targets, V) - logits.softmax(-1)
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    wanted = grad_logits @ head.weight.float()
    torch.testing.assert_close(hidden.grad.float(), wanted, rtol=2**-6, atol=2**-6)  # bfloat16 rounds at 2⁻⁹


@HEADS
@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_a_frozen_head_and_frozen_states(chunk_tokens: int, as_module: bool) -> None:
    hidden, targets, head = case(bias=True)
    head.requires_grad_(False)
    logprobs, _ = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    (found,) = torch.autograd.grad(logprobs.sum(), [hidden])
    (expected,) = torch.autograd.grad(naive(hidden, targets, head)[0].sum(), [hidden])
    torch.testing.assert_close(found, expected)
    head.requires_grad_(True)
    logprobs, _ = token_logprobs(hidden.detach(), targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    logprobs.sum().backward()
    assert hidden.grad is None
    (expected,) = torch.autograd.grad(naive(hidden.detach(), targets, head)[0].sum(), [head.weight])
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad, expected)


@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_a_head_whose_gradient_needs_its_logits(chunk_tokens: int) -> None:
    hidden, targets, linear = case()
    head = nn.Sequential(linear, nn.Tanh())  # tanh keeps its result for the backward pass
    logprobs, _ = token_logprobs(hidden, targets, head, chunk_tokens=chunk_tokens)
    found = torch.autograd.grad(logprobs.sum(), [hidden, linear.weight])
    expected = torch.autograd.grad(naive(hidden, targets, head)[0].sum(), [hidden, linear.weight])
    torch.testing.assert_close(found, expected)


@HEADS
@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_without_gradients_no_graph_is_kept(chunk_tokens: int, as_module: bool) -> None:
    hidden, targets, head = case()
    with torch.no_grad(), LiveBytes() as memory:
        logprobs, entropy = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    assert logprobs.grad_fn is None and entropy.grad_fn is None
    assert memory.live == 2 * N * 4, "log-probs and entropy, nothing else"


@HEADS
@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_tokens_without_weight_have_exactly_no_gradient(chunk_tokens: int, as_module: bool) -> None:
    hidden, targets, head = case()
    weights = torch.randn(N)
    weights[::2] = 0.0
    logprobs, _ = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    (gradient,) = torch.autograd.grad((logprobs * weights).sum(), hidden)
    assert (gradient[::2] == 0.0).all() and (gradient[1::2] != 0.0).any(-1).all()


@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_extreme_logits(chunk_tokens: int) -> None:
    hidden = torch.zeros(N, V)
    hidden[:, 2] = 1e4
    hidden[:, 3] = 1e4 - 1
    hidden.requires_grad_()
    targets = torch.arange(N) % 4
    logprobs, entropy = token_logprobs(hidden, targets, nn.Identity(), chunk_tokens=chunk_tokens)
    second = -math.log(1 + math.e)  # of the logit that is 1 below the largest
    p = math.exp(second)
    by_target = [-1e4 + 1 + second, -1e4 + 1 + second, 1 + second, second]
    assert logprobs.tolist() == pytest.approx([by_target[i % 4] for i in range(N)], rel=1e-6)
    assert entropy.tolist() == pytest.approx([-p * second - (1 - p) * (1 + second)] * N, rel=1e-5)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[3, 2:4], torch.tensor([p - 1, 1 - p]))


@HEADS
@pytest.mark.parametrize("chunk_tokens", [7, N])
def test_a_banned_token(chunk_tokens: int, as_module: bool) -> None:
    hidden, targets, head = case(bias=True)
    targets = targets % (V - 1)
    with torch.no_grad():
        head.bias[V - 1] = -math.inf
    logprobs, entropy = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
    found = torch.autograd.grad(logprobs.sum(), [hidden, head.weight, head.bias])

    shorter = nn.Linear(H, V - 1)
    with torch.no_grad():
        shorter.weight.copy_(head.weight[:-1])
        shorter.bias.copy_(head.bias[:-1])
    expected, expected_entropy = naive(hidden, targets, shorter)
    wanted = torch.autograd.grad(expected.sum(), [hidden, shorter.weight, shorter.bias])
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(found[0], wanted[0])
    for mine, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine[:-1], other)
        assert (mine[-1] == 0.0).all()


def test_a_banned_target_is_impossible_and_not_a_number_stays_visible() -> None:
    logits = torch.tensor([[0.0, -math.inf], [0.0, math.nan]])
    logprobs, entropy = token_logprobs(logits, torch.tensor([1, 0]), nn.Identity(), chunk_tokens=4)
    assert logprobs[0] == -math.inf and entropy[0] == 0.0
    assert logprobs[1].isnan() and entropy[1].isnan()


def test_entropy_of_a_uniform_distribution_is_log_v_and_has_no_gradient() -> None:
    hidden, targets, head = case()
    _, entropy = token_logprobs(hidden * 0.0, targets, head, chunk_tokens=4)
    torch.testing.assert_close(entropy, torch.full((N,), float(V)).log())
    assert not entropy.requires_grad


def test_the_head_is_called_for_a_chunk_at_a_time_and_again_backward() -> None:
    hidden, targets, head = case()
    sizes: list[int] = []
    head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    logprobs, _ = token_logprobs(hidden, targets, head, chunk_tokens=10)
    assert sizes == [10, 10, 10, 7]
    logprobs.sum().backward()
    assert sorted(sizes[4:]) == [7, 10, 10, 10], "the backward pass computes the logits again instead of keeping them"


def test_no_tokens_give_empty_results_and_a_zero_gradient() -> None:
    hidden, targets, head = case(bias=True)
    logprobs, entropy = token_logprobs(hidden[:0], targets[:0], head, chunk_tokens=4)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() * 0.0).backward()
    for parameter in (hidden, head.weight, head.bias):
        assert parameter.grad is not None and (parameter.grad == 0.0).all()


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operators allocate inside the block: those alive now, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_address(value) for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and _address(tensor) not in before:
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


SHAPES = pytest.mark.parametrize(("chunk_tokens", "states"), [(64, 8), (16, 64), (128, 448), (256, 64)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
STATISTICS = 3 / 16 + 0.02  # of one chunk's float32 logits; the rest are numbers of single tokens


def peaks(
    chunk_tokens: int, states: int, dtype: torch.dtype, *, as_module: bool, frozen: bool = False
) -> tuple[float, float, float, float]:
    """Forward peak, backward peak beyond one gradient of states and head, one chunk's logits, the head's gradient.

    All in bytes over those of one chunk's float32 logits.
    """
    tokens, vocabulary = 256, 4096
    unit = chunk_tokens * vocabulary * 4
    hidden = torch.randn(tokens, states, dtype=dtype, requires_grad=True)
    head = nn.Linear(states, vocabulary, bias=False, dtype=dtype)
    head.requires_grad_(not frozen)
    targets = torch.randint(vocabulary, (tokens,))
    with LiveBytes() as memory:
        logprobs, _ = token_logprobs(hidden, targets, seen_as(head, as_module), chunk_tokens=chunk_tokens)
        forward = memory.peak
        memory.peak = memory.live
        logprobs.sum().backward()
    backward = memory.peak - hidden.nbytes - (0 if frozen else head.weight.nbytes)
    return forward / unit, backward / unit, dtype.itemsize / 4, head.weight.nbytes / unit


@SHAPES
@DTYPES
def test_memory_of_a_plain_head(chunk_tokens: int, states: int, dtype: torch.dtype) -> None:
    forward, backward, logits, _ = peaks(chunk_tokens, states, dtype, as_module=False)
    assert logits < forward < logits + STATISTICS <= 2.0
    needed = 2 * logits if chunk_tokens == 256 else logits  # a single chunk keeps its logits
    # The gradient of the head comes after the second buffer of logits, so that a single chunk may stay below.
    assert 0.8 * needed < backward < needed + STATISTICS <= 4.0


@SHAPES
@DTYPES
def test_memory_of_a_head_that_is_called(chunk_tokens: int, states: int, dtype: torch.dtype) -> None:
    forward, backward, logits, gradient = peaks(chunk_tokens, states, dtype, as_module=True)
    assert logits < forward < logits + STATISTICS <= 2.0
    needed = 2 * logits if chunk_tokens == 256 else max(2 * logits, 2 * gradient)
    assert 0.8 * needed < backward < needed + STATISTICS


@HEADS
@SHAPES
@DTYPES
def test_a_frozen_head_gets_no_gradient(chunk_tokens: int, states: int, dtype: torch.dtype, as_module: bool) -> None:
    """As under adapters: logits are all that is held, whatever H is, at any ZeRO stage."""
    forward, backward, logits, _ = peaks(chunk_tokens, states, dtype, as_module=as_module, frozen=True)
    assert logits < forward < logits + STATISTICS
    needed = 2 * logits if chunk_tokens == 256 or as_module else logits
    assert 0.8 * needed < backward < needed + STATISTICS
