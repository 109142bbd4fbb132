"""Which attention a learner takes, and what it does to a packed row."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from learner.attention import FLASH, PACKED_SDPA, boundaries, implementation, packed_sdpa, packed_varlen
from mrpo.choices import Attention
from mrpo.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTHS = (5, 3, 3, 3, 1, 4, 1, 1)
HEADS, KEY_VALUE_HEADS, DIMENSION = 4, 2, 8


class Layer(nn.Module):
    """What attention reads of its layer."""

    num_key_value_groups = HEADS // KEY_VALUE_HEADS
    is_causal = True


def row(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a packed row, float64, as the families' attention layers make them."""
    generator = torch.Generator().manual_seed(seed)
    length = sum(LENGTHS)
    return tuple(  # type: ignore[return-value]
        torch.randn(1, length, heads, DIMENSION, dtype=torch.float64, generator=generator).transpose(1, 2)
        for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    )


def kernel_arguments() -> dict[str, object]:
    ends = torch.tensor(LENGTHS).cumsum(0).int()
    return boundaries(LENGTHS, torch.cat([torch.zeros(1, dtype=torch.int32), ends]))


def masked(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """The definition: softmax over the [L, L] scores of all pairs that may see each other."""
    number = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    allowed = (number[:, None] == number[None]).tril()
    groups = HEADS // KEY_VALUE_HEADS
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def test_each_sample_sees_its_own_past_alone() -> None:
    found_inputs, expected_inputs = ([tensor.clone().requires_grad_() for tensor in row()] for _ in range(2))
    found, weights = packed_sdpa(Layer(), *found_inputs, None, scaling=0.3, **kernel_arguments())
    expected = masked(*expected_inputs, 0.3)
    assert weights is None and found.shape == (1, sum(LENGTHS), HEADS, DIMENSION)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    direction = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view(found.shape)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for mine, theirs in zip(found_inputs, expected_inputs, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-12, rtol=0)


def test_the_varlen_kernel_gets_the_same_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on a GPU alone; here its documented arguments and shapes are held against the definition."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
        scale: float, window_size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        assert query.shape == key.shape == value.shape == (sum(LENGTHS), HEADS, DIMENSION)
        assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k) and cu_q.diff().tolist() == list(LENGTHS)
        assert max_q == max_k == max(LENGTHS) and window_size == (-1, 0), "causal"
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        layer = Layer()
        layer.num_key_value_groups = 1
        return packed_sdpa(layer, q, k, v, None, sample_lengths=LENGTHS, scaling=scale)[0][0]

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    found, weights = packed_varlen(Layer(), *row(), None, scaling=0.3, **kernel_arguments())
    assert weights is None
    torch.testing.assert_close(found, masked(*row(), 0.3), atol=1e-12, rtol=0)


def test_dropout_is_drawn_though_the_varlen_kernel_has_none() -> None:
    arguments = kernel_arguments()
    torch.manual_seed(0)
    expected, _ = packed_sdpa(Layer(), *row(), None, scaling=0.3, dropout=0.5, **arguments)
    torch.manual_seed(0)
    found, _ = packed_varlen(Layer(), *row(), None, scaling=0.3, dropout=0.5, **arguments)
    plain, _ = packed_sdpa(Layer(), *row(), None, scaling=0.3, **arguments)
    assert torch.equal(found, expected) and not torch.equal(found, plain)


def test_a_window_shorter_than_a_sample_is_refused() -> None:
    arguments = kernel_arguments()
    packed_sdpa(Layer(), *row(), None, scaling=0.3, sliding_window=5, **arguments)
    for attention in (packed_sdpa, packed_varlen):
        with pytest.raises(ConfigError, match=r"sliding window of 4 tokens, but a sample has 5; .*flash_attention_2"):
            attention(Layer(), *row(), None, scaling=0.3, sliding_window=4, **arguments)


@pytest.mark.parametrize("attention", [Attention.AUTO, Attention.SDPA])
def test_a_cpu_takes_sdpa(attention: Attention) -> None:
    expected = {"": "sdpa", "text_config": PACKED_SDPA, "vision_config": "sdpa"}
    assert implementation(attention, device=CPU, dtype=torch.float32) == expected
    assert implementation(attention, device=CPU, dtype=torch.bfloat16) == expected
    assert implementation(attention, device=GPU, dtype=torch.float32) == expected


def test_flash_attention_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.attention.find_spec", lambda _: object())
    expected = {"": FLASH, "text_config": FLASH, "vision_config": FLASH}
    for attention in (Attention.AUTO, Attention.FLASH_ATTENTION_2):
        assert implementation(attention, device=GPU, dtype=torch.bfloat16) == expected
    assert implementation(Attention.SDPA, device=GPU, dtype=torch.bfloat16)["text_config"] == PACKED_SDPA


def test_flash_attention_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(device: torch.device, dtype: torch.dtype) -> str:
        with pytest.raises(ConfigError) as caught:
            implementation(Attention.FLASH_ATTENTION_2, device=device, dtype=dtype)
        return str(caught.value)

    remedy = "; set learner.attention=auto or sdpa"
    asked = "learner.attention=flash_attention_2, but "
    assert refusal(CPU, torch.float32) == f"{asked}the learner's device is cpu, and flash-attn needs a GPU{remedy}"
    assert refusal(GPU, torch.float32) == (
        f"{asked}the learner computes in float32, and flash-attn needs learner.dtype=bfloat16{remedy}"
    )
    monkeypatch.setattr("learner.attention.find_spec", lambda name: None if name == "flash_attn" else find_spec(name))
    assert refusal(GPU, torch.bfloat16) == f"{asked}the package flash-attn is not installed{remedy}"
