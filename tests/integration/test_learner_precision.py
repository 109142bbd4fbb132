"""What bfloat16 must not round: rotary frequencies and the sum of gradients, whatever the ZeRO stage."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from learner.buffers import compute_buffers_again
from learner.rank import Rank
from learner.step import score, train_step
from mrpo.errors import ConfigError, NonFiniteError
from tests.integration.learner_world import (
    FAMILIES,
    build_world,
    completions,
    first_moments,
    make,
    relative_difference,
    spec,
    to_score,
)

NUM_TOKENS = 600  # of a text in which a frequency rounded to bfloat16 turns angles by more than a radian


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    build_world(folder)
    return folder


def long_logprobs(rank: Rank, world: Path, family: str) -> torch.Tensor:
    tokens = np.random.default_rng(0).integers(0, 200, NUM_TOKENS).tolist()
    sample = replace(completions(world, family, num_groups=1, group_size=1)[0], completion_token_ids=tokens)
    return torch.tensor(score(rank, to_score([sample]))[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_3_rounds_no_buffer(world: Path, family: str) -> None:
    """Every buffer equals transformers' float32 one, in the policy and in the reference; log-probs equal ZeRO-2's."""
    whole, partitioned = (make(spec(world, family, zero_stage=stage, dtype="bfloat16")) for stage in (2, 3))
    plain = getattr(transformers, whole.family.model_class).from_pretrained(world / family, dtype=torch.float32)
    expected = dict(plain.named_buffers())
    assert any(name.endswith("rotary_emb.inv_freq") for name in expected)
    assert not any(parameter.ds_persist for parameter in partitioned.model.parameters()), "a toy is partitioned whole"
    for model in (partitioned.model, partitioned.reference.model, whole.model):
        found = dict(model.named_buffers())
        assert found.keys() == expected.keys()
        for name, buffer in expected.items():
            assert found[name].dtype == buffer.dtype and torch.equal(found[name], buffer), name
    difference = long_logprobs(partitioned, world, family) - long_logprobs(whole, world, family)
    assert difference.abs().mean() < 1e-6, "the same weights and the same arithmetic"


@pytest.mark.parametrize(("stage", "offload"), [(2, False), (3, False), (3, True)])
def test_micro_batches_add_up_without_rounding(world: Path, stage: int, offload: bool) -> None:
    """The same completion 32 times, in a micro-batch each, has the gradient of one: a 32nd of it is exact in bfloat16.

    A sum in bfloat16 rounds at every addition: of 64, its norm was 0.2 % off.
    """
    sample = completions(world, num_groups=1, group_size=1)[0]
    same = [replace(sample, key=f"q0#{number}") for number in range(32)]
    options = {"zero_stage": stage, "cpu_offload": offload, "dtype": "bfloat16", "max_grad_norm": 1e6}
    length = len(sample.prompt_token_ids) + len(sample.completion_token_ids)
    rank = make(spec(world, tokens_per_micro_batch=length, **options))
    found, expected = [], []
    for samples, moments in ((same[:1], expected), (same, found)):
        rank.optimizer.reset()
        stats = train_step(rank, samples, progress=1.0)  # at the end of the schedule, which moves no weight
        assert stats.num_micro_batches == len(samples)
        moments.append((stats.grad_norm, first_moments(rank)))
    assert found[0][0] == pytest.approx(expected[0][0], rel=1e-6)
    assert relative_difference(found[0][1], expected[0][1]) < 1e-6


@pytest.mark.parametrize("stage", [2, 3])
def test_a_nan_in_bfloat16_moves_nothing_and_is_gone_after(world: Path, stage: int) -> None:
    samples = completions(world)
    rank = make(spec(world, zero_stage=stage, dtype="bfloat16", tokens_per_micro_batch=60))
    expected = train_step(rank, samples, progress=1.0)
    pixels = rank.images.get([samples[3].image])[samples[3].image].tensors["pixel_values"]
    kept = pixels.clone()
    pixels.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"logprobs of row \d \(q1#\d\)"):
        train_step(rank, samples, progress=1.0)
    pixels.copy_(kept)
    assert train_step(rank, samples, progress=1.0).grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)


def test_a_buffer_that_cannot_be_computed_again_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_buffer("table", torch.ones(2), persistent=False)
    with pytest.raises(ConfigError, match=r"0\.table is in no checkpoint, and its Linear .* learner\.zero_stage=2"):
        compute_buffers_again(model)
