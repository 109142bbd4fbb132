"""One learner rank in this process: real transformers models under real DeepSpeed."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from learner.rank import Rank
from learner.sft import Supervision
from learner.step import score, train_step
from mrpo.choices import Aggregation, Importance, Ratio
from mrpo.config import LossConfig
from mrpo.errors import ConfigError, DataError, NonFiniteError
from mrpo.types import LearnStats, SftSample
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

UNCLIPPED = 1e6  # a gradient norm no step here has


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    build_world(folder)
    return folder


def weights(rank: Rank) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in rank.source}


def run_steps(rank: Rank, samples: list[Any], count: int = 2) -> list[LearnStats]:
    return [train_step(rank, samples, progress=0.1 * number) for number in range(count)]


def assert_same(stats: list[LearnStats], other: list[LearnStats], *, rel: float = 1e-5) -> None:
    for mine, theirs in zip(stats, other, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=rel, abs=1e-6)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=rel)
        assert mine.kl == pytest.approx(theirs.kl, rel=10 * rel, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_the_plain_transformers_forward(world: Path, family: str) -> None:
    """Images shared by a group, padding, rotary positions and chunking change nothing."""
    rank = make(spec(world, family, logprob_chunk_tokens=7))
    samples = completions(world, family)
    found = score(rank, to_score(samples))
    plain = getattr(transformers, rank.family.model_class).from_pretrained(world / family)
    for index, sample in enumerate(samples):
        ids = torch.tensor([sample.prompt_token_ids + sample.completion_token_ids])
        pixels = rank.images.get([sample.image])[sample.image].tensors
        types = {"mm_token_type_ids": (ids == rank.model.config.image_token_id).int()} if len(pixels) > 1 else {}
        with torch.no_grad():
            logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels, **types).logits
        start = len(sample.prompt_token_ids)
        expected = logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found[index]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_step_on_all_its_weights(world: Path, family: str) -> None:
    rank = make(spec(world, family))
    before = weights(rank)
    stats = train_step(rank, completions(world, family), progress=0.0)
    assert stats.kl == 0.0, "before the first update the policy is its own reference"
    assert stats.extra["ratio_mean"] == stats.extra["ratio_max"] == 1.0
    assert stats.grad_norm > 0 and stats.num_tokens > 0
    unmoved = [name for name, tensor in weights(rank).items() if torch.equal(tensor, before[name])]
    assert not unmoved


def test_micro_batches_change_nothing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of micro-batches gives the same gradient, for every ratio, aggregation and correction.

    The model computes in float64, and ZeRO-2 adds up in float32. In float32 all through, rounding in the forward pass
    makes 3e-7 of two micro-batches and 1.5e-6 of nine, because the gradients of completions partly cancel.
    """
    monkeypatch.setattr("learner.rank.torch_dtype", lambda *_: torch.float64)
    samples = completions(world)
    rank = make(spec(world, max_grad_norm=UNCLIPPED))
    run_steps(rank, samples)  # away from the reference, so that its KL has a gradient
    for config in (
        LossConfig(),
        LossConfig(aggregation=Aggregation.TOKEN_MEAN),
        LossConfig(aggregation=Aggregation.CONSTANT),
        LossConfig(ratio=Ratio.SEQUENCE),
        LossConfig(ratio=Ratio.SEQUENCE_TOKEN, importance=Importance.MASK),
    ):
        found = [still_step(rank, samples, config, tokens) for tokens in (4096, 300, 160, 72, 45)]
        assert [stats.num_micro_batches for stats, _ in found] == [1, 2, 3, 5, 9]
        assert_same([found[0][0]] * len(found), [stats for stats, _ in found])
        for _, moments in found[1:]:
            assert relative_difference(moments, found[0][1]) < 1e-6


def still_step(rank: Rank, samples: list[Any], loss: LossConfig, tokens: int) -> tuple[LearnStats, torch.Tensor]:
    """A step that moves no weight: at the end of the schedule the learning rate is 0."""
    learner = replace(rank.spec.learner, tokens_per_micro_batch=tokens)
    rank.spec = replace(rank.spec, loss=loss, learner=learner)
    rank.optimizer.reset()
    return train_step(rank, samples, progress=1.0), first_moments(rank)


def test_the_samplers_log_probs_weigh_the_gradient(world: Path) -> None:
    """Before the first update the KL has no gradient, so that the gradient is the weighted surrogate's."""
    rank = make(spec(world, max_grad_norm=UNCLIPPED))
    samples = completions(world)
    own = score(rank, to_score(samples))

    def step(loss: LossConfig, log_weight: float) -> tuple[LearnStats, torch.Tensor]:
        sampled = [
            replace(sample, rollout_logprobs=[value - log_weight for value in own[index]])
            for index, sample in enumerate(samples)
        ]
        return still_step(rank, sampled, loss, 4096)

    plain, expected = step(LossConfig(importance=Importance.NONE), 0.0)
    assert not [name for name in plain.extra if name.startswith("importance")]
    for importance, log_weight, weight, clipped in (
        (Importance.TRUNCATE, 0.0, 1.0, 0.0),
        (Importance.TRUNCATE, 0.5, math.exp(0.5), 0.0),
        (Importance.TRUNCATE, -1.0, math.exp(-1.0), 0.0),
        (Importance.TRUNCATE, 1.0, 2.0, 1.0),
        (Importance.MASK, 0.5, math.exp(0.5), 0.0),
        (Importance.MASK, 1.0, 0.0, 1.0),
        (Importance.MASK, -1.0, 0.0, 1.0),
    ):
        stats, moments = step(LossConfig(importance=importance), log_weight)
        assert stats.extra["importance_mean"] == pytest.approx(weight, rel=1e-5)
        assert stats.extra["importance_clip_share"] == clipped
        assert stats.extra["importance_diff"] == pytest.approx(abs(log_weight), abs=1e-5)
        assert stats.extra["importance_diff_max"] == pytest.approx(abs(log_weight), abs=1e-5)
        assert relative_difference(moments + expected, expected * (1.0 + weight)) < 1e-5


@pytest.mark.parametrize(
    "change", [{"zero_stage": 0}, {"zero_stage": 1}, {"zero_stage": 3}, {"gradient_checkpointing": True}]
)
def test_how_it_is_computed_changes_nothing(world: Path, change: dict[str, Any]) -> None:
    samples = completions(world)
    settings = {"max_grad_norm": 0.3, "tokens_per_micro_batch": 100, "logprob_chunk_tokens": 16}
    assert_same(
        run_steps(make(spec(world, **settings)), samples), run_steps(make(spec(world, **settings | change)), samples)
    )


def test_bfloat16_with_float32_master_weights_takes_steps(world: Path) -> None:
    samples = completions(world)
    half = run_steps(make(spec(world, dtype="bfloat16")), samples)
    full = run_steps(make(spec(world)), samples)
    assert half[1].loss == pytest.approx(full[1].loss, abs=0.05)
    assert half[0].grad_norm == pytest.approx(full[0].grad_norm, rel=0.1)


def test_weight_decay_spares_norms_and_biases(world: Path) -> None:
    rank = make(spec(world, weight_decay=0.5, lr=0.1, warmup_steps=0))
    still = [replace(sample, advantages=[0.0] * len(sample.advantages)) for sample in completions(world)]
    before = weights(rank)
    train_step(rank, still, progress=0.0)
    for name, tensor in weights(rank).items():
        expected = before[name] * (0.95 if tensor.ndim >= 2 else 1.0)
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("family", "projector"), [("internvl", "projector"), ("qwen3_vl", "merger")])
def test_what_is_frozen_stays_as_it_is(family: str, projector: str, world: Path) -> None:
    for tower, connector in ((True, False), (False, True), (True, True)):
        rank = make(spec(world, family, freeze_vision_tower=tower, freeze_projector=connector))
        before = weights(rank)
        train_step(rank, completions(world, family), progress=0.0)
        moved = {name for name, tensor in weights(rank).items() if not torch.equal(tensor, before[name])}
        moved_projector = {name for name in moved if projector in name}
        moved_tower = {name for name in moved - moved_projector if "vis" in name}
        assert bool(moved_tower) != tower and bool(moved_projector) != connector
        assert any("language_model" in name for name in moved)


def test_without_kl_no_reference_is_held(world: Path) -> None:
    rank = make(spec(world, loss=LossConfig(beta=0.0)))
    assert rank.reference is None
    assert train_step(rank, completions(world), progress=0.0).kl == 0.0


def test_a_bad_number_of_a_token_names_its_completion(world: Path) -> None:
    rank = make(spec(world))
    samples = completions(world)
    for name in ("advantages", "rollout_logprobs"):
        values = getattr(samples[4], name)
        bad = replace(samples[4], **{name: [-math.inf, *values[1:]]})
        with pytest.raises(NonFiniteError, match=rf"{name} of {bad.key} are not finite"):
            train_step(rank, [*samples[:4], bad], progress=0.0)
        short = replace(samples[4], **{name: values[1:]})
        with pytest.raises(DataError, match=rf"{short.key} has {len(values) - 1} {name} for {len(values)} tokens"):
            train_step(rank, [*samples[:4], short], progress=0.0)
    assert rank.num_steps == 0
    rank.spec = replace(rank.spec, loss=LossConfig(importance=Importance.NONE))
    unused = replace(samples[4], rollout_logprobs=[])
    assert train_step(rank, [*samples[:4], unused], progress=0.0).grad_norm > 0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_broken_forward_names_a_completion_and_updates_nothing(world: Path, stage: int) -> None:
    rank = make(spec(world, zero_stage=stage, tokens_per_micro_batch=60))
    samples = completions(world)
    train_step(rank, samples, progress=0.0)
    pixels = rank.images.get([samples[3].image])[samples[3].image].tensors["pixel_values"]
    kept = pixels.clone()
    before = weights(rank)
    pixels.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"logprobs of row \d \(q1#\d\)"):
        train_step(rank, samples, progress=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(rank).items())
    assert rank.optimizer.num_steps == rank.num_steps == 1
    pixels.copy_(kept)
    assert train_step(rank, samples, progress=0.0).grad_norm > 0, "the rank is fit for use after the error"


def test_a_completion_with_a_vision_token_is_named_left_out_and_counted(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = completions(world)
    expected = train_step(make(spec(world)), samples[1:], progress=0.0)
    rank = make(spec(world))
    image_token = rank.model.config.image_token_id
    marked = replace(samples[0], completion_token_ids=[image_token, *samples[0].completion_token_ids[1:]])
    found = train_step(rank, [marked, *samples[1:]], progress=0.0)
    assert found.extra["dropped_vision_token"] == 1.0
    assert f"left out 1 completions that contain a vision token: {marked.key}" in caplog.text
    assert_same([found], [expected])
    with pytest.raises(DataError, match=f"vision token cannot be scored: {marked.key}"):
        score(rank, to_score([marked]))


def test_a_step_without_completions_moves_nothing(world: Path) -> None:
    rank = make(spec(world))
    stats = train_step(rank, [], progress=0.0)
    assert stats.extra["skipped_update"] == 1.0 and stats.num_tokens == 0 and rank.num_steps == 0


def test_a_prompt_that_does_not_fit_its_image_is_named(world: Path) -> None:
    rank = make(spec(world))
    samples = completions(world)
    ids = list(samples[2].prompt_token_ids)
    ids.remove(rank.model.config.image_token_id)
    samples[2] = replace(samples[2], prompt_token_ids=ids)
    with pytest.raises(DataError, match=rf"completion {samples[2].key}: its prompt holds 8 image tokens, .* gives 9"):
        train_step(rank, samples, progress=0.0)


def test_the_warm_start_learns_then_starts_afresh(world: Path) -> None:
    rank = make(spec(world))
    examples = [
        SftSample(image=str(world / f"{number % 3}.png"), question="Where?", target=f"Two lesions {number % 3}.")
        for number in range(12)
    ]
    stats = Supervision(rank).warm_start(examples, num_steps=30, batch_size=6, lr=5e-3, seed=0)
    assert len(stats.losses) == 30 and stats.losses[-1] < 0.3 * stats.losses[0]
    assert rank.optimizer.num_steps == 0 and rank.num_steps == 0
    assert rank.reference is not None
    for mine, other in zip(rank.model.parameters(), rank.reference.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert train_step(rank, completions(world), progress=0.0).kl == 0.0


def test_a_missing_folder_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model at .*config\.json"):
        make(replace(spec(world), model_folder=str(world / "nothing")))
