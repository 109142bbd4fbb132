"""The flash kernel that comes with PyTorch against SDPA sample by sample; not part of `make test`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.attention import boundaries, packed_sdpa, packed_varlen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here"),
]

LENGTHS = (700, 333, 333, 64, 1)
HEADS, KEY_VALUE_HEADS, DIMENSION = 28, 4, 128  # of a 7B model


class Layer(nn.Module):
    """What attention reads of its layer."""

    num_key_value_groups = HEADS // KEY_VALUE_HEADS
    is_causal = True


def test_both_kernels_give_the_same_states_and_gradients() -> None:
    device, length = torch.device("cuda"), sum(LENGTHS)
    ends = torch.tensor((0, *LENGTHS)).cumsum(0).int().to(device)
    torch.manual_seed(0)
    shapes = [(1, length, heads, DIMENSION) for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)]
    drawn = [torch.randn(shape, device=device).transpose(1, 2) for shape in shapes]
    direction = torch.randn(1, length, HEADS, DIMENSION, device=device)
    found = []
    for attention, dtype in ((packed_sdpa, torch.float32), (packed_varlen, torch.bfloat16)):
        inputs = [tensor.to(dtype).clone().requires_grad_() for tensor in drawn]
        output, _ = attention(Layer(), *inputs, None, scaling=DIMENSION**-0.5, **boundaries(LENGTHS, ends))
        (output.float() * direction).sum().backward()
        found.append([output, *(tensor.grad for tensor in inputs)])
    for expected, mine in zip(*found, strict=True):
        assert float((mine.float() - expected).norm() / expected.norm()) < 0.02  # bfloat16 keeps 8 bits
