"""In bfloat16, rounding stays where it belongs: not in rotary frequencies, whatever the ZeRO stage."""

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
from learner.step import score
from mrpo.errors import ConfigError
from tests.integration.learner_world import FAMILIES, build_world, completions, make, spec, to_score

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


def test_a_buffer_that_cannot_be_computed_again_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_buffer("table", torch.ones(2), persistent=False)
    with pytest.raises(ConfigError, match=r"0\.table is in no checkpoint, and its Linear .* learner\.zero_stage=2"):
        compute_buffers_again(model)
