"""Adapters, frozen parts, offloading and number formats: real PEFT, transformers and DeepSpeed on toy models."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from learner.checkpoint import load, save
from learner.group import DeepSpeedLearner
from learner.lora import write_adapter
from learner.rank import Rank
from learner.sft import Supervision
from learner.step import score, train_step
from mrpo.config import LoraConfig
from mrpo.errors import ConfigError, DataError
from mrpo.families import family_of
from mrpo.manifest import write_manifest
from mrpo.types import SftSample
from tests.integration.learner_world import (
    FAMILIES,
    build_world,
    completions,
    make,
    relative_difference,
    spec,
    to_score,
)

LORA = LoraConfig(r=4, alpha=16.0, dropout=0.0)
FAST = {"lr": 2e-2, "max_grad_norm": 1e6}  # adapters move far enough for a difference to be seen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    build_world(folder)
    return folder


def scores(rank: Rank, samples: list[Any]) -> torch.Tensor:
    """Log-probs of all completion tokens, one after another."""
    found = score(rank, to_score(samples))
    return torch.tensor([value for index in range(len(samples)) for value in found[index]], dtype=torch.float64)


def trained(settings: Any, samples: list[Any], steps: int = 2) -> Rank:
    rank = make(settings)
    for _ in range(steps):
        train_step(rank, samples, progress=0.0)
    return rank


def adapter_moments(rank: Rank) -> torch.Tensor:
    """First moments of what is trained, flat: after one step from zero, 0.1 times the gradient."""
    trainable = [parameter for parameter in rank.model.parameters() if parameter.requires_grad]
    return torch.cat([rank.optimizer.moment(parameter, "exp_avg").flatten() for parameter in trainable])


@pytest.mark.parametrize(
    ("family", "stage"),
    [*((family, stage) for family in FAMILIES for stage in (2, 3)), ("qwen2_5_vl", 0), ("qwen2_5_vl", 1)],
)
def test_adapters_off_on_merged_and_saved(world: Path, tmp_path: Path, family: str, stage: int) -> None:
    """Off, the policy is the base model to the bit; merged or loaded by PEFT, it is the policy with adapters on."""
    samples = completions(world, family)
    base = scores(make(spec(world, family)), samples)
    rank = trained(spec(world, family, zero_stage=stage, lora=LORA, **FAST), samples)
    assert rank.adapters is not None
    assert {name.split(".")[1] for name in rank.adapters.layers} == {"language_model"}
    assert len(rank.adapters.layers) == 7 * rank.model.config.text_config.num_hidden_layers
    on = scores(rank, samples)
    with rank.adapters.off():
        assert torch.equal(scores(rank, samples), base)
    assert torch.equal(scores(rank, samples), on)
    assert (on - base).abs().max() > 0.05, "the adapters have learned nothing"

    save(rank, tmp_path)
    exported, original = (
        load_file(tmp_path / "hf" / "model.safetensors"),
        load_file(world / family / "model.safetensors"),
    )
    assert exported.keys() == original.keys()
    moved = {name.split(".")[-2] for name in exported if not torch.equal(exported[name], original[name])}
    assert moved == set(rank.family.lora_targets)
    assert not [name for name in exported if "vis" in name and not torch.equal(exported[name], original[name])]
    merged = make(replace(spec(world, family), model_folder=str(tmp_path / "hf")))
    torch.testing.assert_close(scores(merged, samples), on, atol=1e-5, rtol=0)

    plain = getattr(transformers, family_of(family).model_class).from_pretrained(world / family)
    adapted = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    theirs = dict(adapted.named_parameters())
    for name, layer in rank.adapters.layers.items():
        torch.testing.assert_close(theirs[f"{name}.weight"], rank.adapters.merged(name), atol=1e-6, rtol=1e-5)
        assert layer.scaling == {"default": 4.0}


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.usefixtures("ray_session")
def test_two_ranks_train_the_same_adapters_as_one(world: Path, tmp_path: Path, stage: int) -> None:
    samples = completions(world)
    settings = spec(world, lora=LORA, tokens_per_micro_batch=60, **FAST)
    alone = make(settings)

    async def on_two_ranks() -> list[list[float]]:
        both = replace(settings, learner=replace(settings.learner, num_ranks=2, zero_stage=stage))
        learner = DeepSpeedLearner(both)
        await learner.start()
        try:
            for _ in range(2):
                found, expected = await learner.step(samples, progress=0.0), train_step(alone, samples, progress=0.0)
                assert found.loss == pytest.approx(expected.loss, rel=1e-4)
                assert found.kl == pytest.approx(expected.kl, rel=1e-4)
                assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
            await learner.save(str(tmp_path))
            return await learner.score(to_score(samples))
        finally:
            await learner.close()

    on = torch.tensor([value for row in asyncio.run(on_two_ranks()) for value in row], dtype=torch.float64)
    merged = make(replace(spec(world), model_folder=str(tmp_path / "hf")))
    torch.testing.assert_close(scores(merged, samples), on, atol=1e-5, rtol=0)
    resumed = make(settings)
    load(resumed, tmp_path)
    torch.testing.assert_close(scores(resumed, samples), on, atol=1e-5, rtol=0)
    resumed_stats, stats = (train_step(rank, samples, progress=0.0) for rank in (resumed, alone))
    assert resumed_stats.loss == pytest.approx(stats.loss, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_with_dropout_continues_bit_for_bit(world: Path, tmp_path: Path, stage: int) -> None:
    settings = spec(world, zero_stage=stage, lora=replace(LORA, dropout=0.3), weight_decay=0.1, **FAST)
    samples = completions(world)
    first = trained(settings, samples)
    save(first, tmp_path)
    state = json.loads((tmp_path / "learner" / "state.json").read_text())
    assert state["lora"] == {"r": 4, "alpha": 16.0, "targets": sorted(first.family.lora_targets)}
    assert all("lora_" in name for name in load_file(tmp_path / "learner" / "weights-00001.safetensors"))
    assert "reference" not in state["files"]
    second = make(settings)
    load(second, tmp_path)
    for _ in range(2):
        expected, found = (train_step(rank, samples, progress=0.1) for rank in (first, second))
        assert (found.loss, found.grad_norm, found.kl) == (expected.loss, expected.grad_norm, expected.kl)
    for (name, mine), (_, other) in zip(second.source, first.source, strict=True):
        assert torch.equal(mine, other), name


def test_dropout_is_of_training_steps_alone(world: Path) -> None:
    samples = completions(world)
    rank = trained(spec(world, lora=replace(LORA, dropout=0.5), **FAST), samples)
    assert torch.equal(scores(rank, samples), scores(rank, samples))
    plain = make(spec(world, lora=LORA, **FAST))
    for mine, theirs in zip(plain.model.parameters(), rank.model.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    assert torch.equal(scores(plain, samples), scores(rank, samples)), "scoring sees no dropout"
    batch = rank.inputs.build(samples[:3])
    assert rank.reference is not None and plain.reference is not None
    assert torch.equal(rank.reference.logprobs(batch), plain.reference.logprobs(batch))
    dropped, whole = (train_step(each, samples, progress=0.0) for each in (rank, plain))
    assert dropped.grad_norm != pytest.approx(whole.grad_norm, rel=1e-3), "training does"
    assert dropped.extra["ratio_mean"] == dropped.extra["ratio_max"] == 1.0
    assert dropped.kl != pytest.approx(whole.kl, rel=1e-3), "and its KL shows it"


def test_a_checkpoint_of_other_adapters_or_another_base_is_refused(world: Path, tmp_path: Path) -> None:
    save(make(spec(world, lora=LORA)), tmp_path)
    load(make(spec(world, lora=replace(LORA, dropout=0.2))), tmp_path)  # dropout may change
    for other in (replace(LORA, r=8), replace(LORA, alpha=8.0), replace(LORA, targets=("q_proj",))):
        with pytest.raises(DataError, match=r"trained with adapters of r=4, alpha=16 on down_proj, .*, this run with"):
            load(make(spec(world, lora=other)), tmp_path)
    with pytest.raises(DataError, match=r"this run with no adapters \(r=0\); resume with lora.r"):
        load(make(spec(world)), tmp_path)
    base = load_file(world / "qwen2_5_vl" / "model.safetensors")
    name = next(name for name in base if name.endswith("k_proj.weight"))
    base[name][0, 0] += 0.1
    other_world = tmp_path / "other"
    other_world.mkdir()
    copy_model(world / "qwen2_5_vl", other_world / "qwen2_5_vl", base)
    with pytest.raises(DataError, match=r"on other frozen weights than those of .*/other/qwen2_5_vl; resume"):
        load(make(spec(other_world, lora=LORA)), tmp_path)


def test_a_frozen_tower_is_checked_too_and_an_old_checkpoint_still_resumes(world: Path, tmp_path: Path) -> None:
    samples = completions(world)
    first = trained(spec(world, freeze_vision_tower=True), samples, steps=1)
    save(first, tmp_path)
    assert not any("visual.blocks" in name for name in load_file(tmp_path / "learner" / "weights-00001.safetensors"))
    second = make(spec(world, freeze_vision_tower=True))
    load(second, tmp_path)
    assert torch.equal(scores(first, samples), scores(second, samples))
    with pytest.raises(DataError, match="with the same parts of it frozen"):
        load(make(spec(world)), tmp_path)

    (tmp_path / "old").mkdir()
    whole = trained(spec(world), samples, steps=1)
    save(whole, tmp_path / "old")
    path = tmp_path / "old" / "learner" / "state.json"
    state = json.loads(path.read_text())
    del state["lora"], state["frozen_weights"]
    path.write_text(json.dumps(state | {"format_version": 1}))
    write_manifest(tmp_path / "old")
    third = make(spec(world))
    load(third, tmp_path / "old")
    assert torch.equal(scores(whole, samples), scores(third, samples))
    path.write_text(json.dumps(state | {"format_version": 3}))
    with pytest.raises(DataError, match="format version 3, this program reads 1 and 2"):
        load(third, tmp_path / "old")


def copy_model(source: Path, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint with other weights."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_that_does_not_fill_the_model_is_refused(world: Path, tmp_path: Path, stage: int) -> None:
    weights = load_file(world / "internvl" / "model.safetensors")
    name = next(name for name in weights if name.endswith("o_proj.weight"))
    full = weights[name]
    for number, (stored, message) in enumerate(
        [(None, "is missing; copy"), (full[:5], r"has shape \[5, 128\] there and \[128, 128\] in the model; copy")]
    ):
        folder = tmp_path / str(number)
        kept = {key: value for key, value in weights.items() if key != name}
        copy_model(world / "internvl", folder, kept if stored is None else kept | {name: stored.contiguous()})
        with pytest.raises(ConfigError, match=message):
            make(replace(spec(world, "internvl", zero_stage=stage), model_folder=str(folder)))


def test_unknown_targets_are_refused_with_those_that_exist(world: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no linear layer named qkv, query; it has down_proj, gate_proj, k_proj, o_p"
    ):
        make(spec(world, lora=replace(LORA, targets=("query", "q_proj", "qkv"))))  # qkv is the vision tower's
    rank = make(spec(world, lora=replace(LORA, targets=("v_proj", "q_proj"))))
    assert rank.adapters is not None
    assert {name.rpartition(".")[2] for name in rank.adapters.layers} == {"q_proj", "v_proj"}


def test_what_adapters_cannot_do_is_said(world: Path, tmp_path: Path) -> None:
    examples = [SftSample(image=str(world / "0.png"), question="Where?", target="Two lesions.")]
    with pytest.raises(ConfigError, match=r"the KL reference is the base model, which cannot take over"):
        Supervision(make(spec(world, lora=LORA))).warm_start(examples, num_steps=1, batch_size=1, lr=1e-3, seed=0)
    with pytest.raises(ConfigError, match=r"learner\.lora\.r=0 trains all weights"):
        write_adapter(make(spec(world)), tmp_path)


def test_the_written_adapter_is_pefts_own_layout(world: Path, tmp_path: Path) -> None:
    rank = trained(spec(world, lora=LORA, **FAST), completions(world), steps=1)
    num_bytes = write_adapter(rank, tmp_path / "new" / "adapter")
    written = load_file(tmp_path / "new" / "adapter" / "adapter_model.safetensors")
    assert num_bytes == sum(tensor.nbytes for tensor in written.values())
    plain = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(world / "qwen2_5_vl")
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "new" / "adapter"))
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], written[name]) for name in again)
    assert all(tensor.abs().max() > 0 for tensor in written.values())


@pytest.mark.parametrize(
    "change",
    [
        {"lora": LORA, "zero_stage": 2},
        {"lora": replace(LORA, dropout=0.3), "zero_stage": 3},
        {"freeze_vision_tower": True, "freeze_projector": True, "zero_stage": 2},
        {"freeze_vision_tower": True, "zero_stage": 3},
    ],
    ids=str,
)
def test_gradient_checkpointing_changes_no_gradient(world: Path, change: dict[str, Any]) -> None:
    """Neither under frozen embeddings, where no input wants a gradient, nor what dropout draws."""
    samples = completions(world)
    plain = trained(spec(world, **FAST, **change), samples, steps=2)
    sparing = trained(spec(world, gradient_checkpointing=True, **FAST, **change), samples, steps=2)
    found, expected = adapter_moments(sparing), adapter_moments(plain)
    assert expected.abs().max() > 0
    assert relative_difference(found, expected) < 1e-5


COMBINATIONS = [
    (stage, lora, offload, dtype)
    for stage in (0, 1, 2, 3)
    for lora in (False, True)
    for offload in (False, True)
    for dtype in ("float32", "bfloat16")
    if stage > 0 or (not offload and dtype == "float32")
]


@pytest.fixture(scope="module")
def losses(world: Path) -> dict[tuple[bool, str], list[float]]:
    """Losses of two steps at ZeRO-2 without offloading, by (adapters, dtype)."""
    return {(lora, dtype): two_steps(world, 2, lora, False, dtype) for lora in (False, True) for dtype in DTYPES}


DTYPES = ("float32", "bfloat16")


def two_steps(world: Path, stage: int, lora: bool, offload: bool, dtype: str) -> list[float]:
    rank = make(spec(world, zero_stage=stage, cpu_offload=offload, dtype=dtype, lora=LORA if lora else None, lr=5e-3))
    stats = [train_step(rank, completions(world), progress=0.0) for _ in range(2)]
    for parameter in rank.model.parameters():
        assert parameter.dtype == getattr(torch, dtype)
        if parameter.requires_grad:
            assert rank.optimizer.master(parameter).dtype == torch.float32
    return [value for step in stats for value in (step.loss, step.grad_norm, step.kl)]


@pytest.mark.parametrize(("stage", "lora", "offload", "dtype"), COMBINATIONS)
def test_where_and_how_it_is_held_changes_nothing(
    world: Path, losses: dict[tuple[bool, str], list[float]], stage: int, lora: bool, offload: bool, dtype: str
) -> None:
    tolerance = {"float32": 1e-4, "bfloat16": 2e-2}[dtype]
    found = two_steps(world, stage, lora, offload, dtype)
    assert found == pytest.approx(losses[lora, dtype], rel=tolerance, abs=tolerance)
    assert found[0] != found[3], "the first step moved something"
