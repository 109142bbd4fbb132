"""The plan: sums by hand, monotony, refusals whose remedies fit, and every recipe on every machine."""

from __future__ import annotations

import io
import socket
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mrpo.choices import ToyFamily
from mrpo.compose import choices
from mrpo.config import Config, LearnerConfig, LoraConfig, ModelConfig
from mrpo.errors import ConfigError, ResourceError
from mrpo.plan.__main__ import configure, main
from mrpo.plan.activations import Load
from mrpo.plan.architecture import Architecture, architecture_of, published
from mrpo.plan.engine_memory import engine_memory, kv_bytes_per_token
from mrpo.plan.learner_memory import (
    BUCKET_ELEMENTS,
    PERSISTENT_ELEMENTS,
    RankMemory,
    RankSettings,
    accumulated_element,
    rank_memory,
)
from mrpo.plan.memory import GIB, Part
from mrpo.plan.plan import make_plan
from mrpo.plan.refusal import memory_note
from mrpo.plan.remedies import remedies_of, with_overrides
from mrpo.plan.tables import WIDTH, show
from mrpo.plan.workload import image_tokens_of, workload_of

LOAD = Load(tokens=8192, completion_tokens=4096, images=4, image_tokens=4096)
# A directory of groups holds what several recipes share under a leading underscore.
EXPERIMENTS = [name for name in choices("experiment") if not name.startswith("_")]
REAL = ["qwen2_5_vl", "qwen3_vl", "internvl3"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a plan asks no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def internvl() -> Architecture:
    found = published("OpenGVLab/InternVL3-8B-hf")
    assert found is not None
    return found


def rank(**changes: Any) -> RankMemory:
    defaults: dict[str, Any] = {
        "learner": LearnerConfig(zero_stage=2), "num_ranks": 1, "on_gpu": True, "reference": False,
        "freeze_tower": False, "freeze_projector": False, "load": LOAD,
    }  # fmt: skip
    return rank_memory(internvl(), RankSettings(**(defaults | changes)))


def rank_at(stage: int, ranks: int, **learner: Any) -> RankMemory:
    return rank(learner=LearnerConfig(zero_stage=stage, **learner), num_ranks=ranks)


def test_zero_divides_what_the_paper_says() -> None:
    """arXiv 1910.02054, figure 1, in bfloat16: 2 P of weights, 12 P of optimizer over N ranks; gradients' sum: 4 P."""
    size = 7_944_373_760
    alone, second = rank_at(2, 1).resting.parts, rank_at(2, 4).resting.parts
    assert alone[Part.WEIGHTS] == second[Part.WEIGHTS] == 2 * size
    assert alone[Part.OPTIMIZER] == 12 * size
    assert second[Part.OPTIMIZER] == 3 * size
    third = rank_at(3, 4).resting.parts
    assert third[Part.OPTIMIZER] == 3 * size and third[Part.GRADIENTS] == size
    # Norms and biases, below 100,000 elements each, stay whole on every rank.
    small = rank_at(3, 4).counts.small
    assert 0 < small < 2e-3 * size
    assert third[Part.WEIGHTS] == pytest.approx(2 * (size / 4 + 0.75 * small), abs=8)


def test_buckets_are_those_of_the_learner() -> None:
    from learner import zero_config

    assert (zero_config.BUCKET_ELEMENTS, zero_config.PERSISTENT_ELEMENTS) == (BUCKET_ELEMENTS, PERSISTENT_ELEMENTS)
    for stage, offload in product((1, 2, 3), (False, True)):
        learner = LearnerConfig(zero_stage=stage, cpu_offload=offload)
        assert (accumulated_element(learner, 2) == 4) == zero_config.accumulates_in_float32(learner)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_ranks_need_no_more(stage: int) -> None:
    totals = [rank_at(stage, ranks).learning.total for ranks in (2, 3, 4, 8, 16)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_moves_states_to_main_memory(stage: int) -> None:
    on, off = rank_at(stage, 4), rank_at(stage, 4, cpu_offload=True)
    assert off.learning.total < on.learning.total
    assert off.host.total - on.host.total > on.resting.parts[Part.OPTIMIZER]


def test_adapters_leave_a_tiny_optimizer_and_no_reference() -> None:
    full = rank(reference=True)
    lora = rank(reference=True, learner=LearnerConfig(zero_stage=2, lora=LoraConfig(r=16)))
    # Of each of 28 layers: q and o 3584 × 3584, k and v 512 × 3584, gate, up and down 18944 × 3584; rank times both.
    adapters = 16 * 28 * (2 * (3584 + 3584) + 2 * (512 + 3584) + 3 * (18944 + 3584))
    assert lora.counts.trainable == adapters
    assert lora.resting.parts[Part.OPTIMIZER] == 12 * adapters
    assert full.resting.parts[Part.REFERENCE] == 2 * 7_944_373_760
    assert lora.resting.parts[Part.REFERENCE] == 0


def test_checkpointing_and_smaller_micro_batches_need_less() -> None:
    plain = rank()
    checkpointed = rank(learner=LearnerConfig(zero_stage=2, gradient_checkpointing=True))
    half = rank(load=replace(LOAD, tokens=4096, completion_tokens=2048, images=2, image_tokens=2048))
    assert checkpointed.activations.kept < 0.2 * plain.activations.kept
    assert half.activations.kept == pytest.approx(0.5 * plain.activations.kept, rel=1e-6)
    frozen = rank(freeze_tower=True)
    assert frozen.learning.total < plain.learning.total


def test_the_cache_is_what_the_share_leaves() -> None:
    config = recipe("internvl3", "cluster=4x_gpu")
    # 2 · 28 layers · 4 heads · 128 numbers · 2 bytes.
    assert kv_bytes_per_token(internvl(), element=2) == 57_344
    assert kv_bytes_per_token(internvl(), element=2, tensor_parallel=8) == 57_344 // 4
    engine = engine_memory(config, internvl(), workload_of(config, internvl()))
    assert engine.awake.total == pytest.approx(0.85 * 80 * GIB, abs=1)
    assert engine.cache_tokens == engine.awake.parts[Part.KV_CACHE] // 57_344
    assert engine.concurrent == min(128, engine.cache_tokens // 4096)


@pytest.mark.parametrize(
    ("path", "pixels", "tiles", "tokens"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 802_816, None, 1024),  # 896 × 896 at 28 pixels a token
        ("Qwen/Qwen3-VL-8B-Instruct", 802_816, None, 784),  # at 32
        ("OpenGVLab/InternVL3-8B-hf", 802_816, None, 13 * 256),  # 12 tiles and the whole
        ("OpenGVLab/InternVL3-8B-hf", 802_816, 4, 5 * 256),  # as conf/model/internvl3.yaml has it
        ("OpenGVLab/InternVL3-8B-hf", 802_816, 1, 256),
    ],
)
def test_tokens_of_the_largest_image(path: str, pixels: int, tiles: int | None, tokens: int) -> None:
    architecture = architecture_of(ModelConfig(path=path))
    assert image_tokens_of(architecture, max_pixels=pixels, max_tiles=tiles) == tokens


def recipe(name: str, *overrides: str) -> Config:
    return configure([f"experiment={name}", *overrides])


@pytest.mark.parametrize(("experiment", "cluster"), list(product(EXPERIMENTS, choices("cluster"))))
def test_every_recipe_has_a_plan_on_every_machine(experiment: str, cluster: str) -> None:
    """It fits, or a remedy is told that does."""
    try:
        config = recipe(experiment, f"cluster={cluster}")
    except ConfigError:
        # Contradictory whatever the plan: a toy's settings for a CPU on GPUs, say.
        return
    plan = make_plan(config)
    remedies = [] if plan.fits else remedies_of(plan)
    text = io.StringIO()
    show(plan, remedies, Console(file=text))
    assert max(map(len, text.getvalue().splitlines())) <= WIDTH
    assert plan.fits or remedies, text.getvalue()
    for remedy in remedies:
        assert remedy.text in " ".join(text.getvalue().split())
        assert make_plan(with_overrides(config, remedy.overrides)).fits


def test_a_shared_gpu_has_room_for_scoring_and_saving_beside_an_engine_that_is_awake() -> None:
    """The parity gate, the probe and a checkpoint come while the engine holds its share."""
    plan = make_plan(recipe("internvl3", "cluster=8x_gpu_colocated"))
    sampling, _, _ = plan.places
    share = int(plan.config.rollout.gpu_memory_utilization * 80 * GIB)
    moments = {memory.phase: memory.total for memory in (plan.rank.resting, plan.rank.scoring, plan.rank.saving)}
    assert sampling.memory.total == share + max(moments.values()) > share + moments["between steps"]
    assert sampling.memory.phase == f"{max(moments, key=moments.__getitem__)}, engine awake"
    # A master weight or a moment of the largest tensor, which is the embedding: 151,674 tokens of 3,584 numbers.
    assert moments["saving"] - moments["between steps"] == 4 * 151_674 * 3_584
    # One chunk of 2,048 tokens' logits in bfloat16, two float32 copies of a sixteenth of it; weights on their way.
    scoring = plan.rank.scoring.parts
    assert scoring[Part.LOGITS] == 2_048 * 151_674 * 2 + 2 * (2_048 * 151_674 * 4 // 16)
    assert scoring[Part.BUFFERS] == plan.rank.resting.parts[Part.BUFFERS] + 2 * 10**9
    assert 0 < scoring[Part.ACTIVATIONS] < plan.rank.learning.parts[Part.ACTIVATIONS]


def test_a_checkpoint_under_way_takes_memory_of_one_node_unless_training_waits_for_it() -> None:
    weights = rank().counts.total
    # Float32 weights and two moments, then weights in bfloat16, then as many of the KL's reference.
    assert rank().snapshot == (12 + 2) * weights
    assert rank(reference=True).snapshot == (12 + 2 + 2) * weights
    adapters = rank(learner=LearnerConfig(zero_stage=2, lora=LoraConfig(r=16)), reference=True)
    assert adapters.snapshot == 12 * adapters.counts.trainable + 2 * weights
    plan, waiting = (
        make_plan(recipe("internvl3", "cluster=2x8_gpu", f"checkpoint.asynchronous={value}"))
        for value in ("true", "false")
    )
    assert plan.places[-1].memory.parts[Part.CHECKPOINT] == plan.rank.snapshot
    assert plan.places[-1].memory.phase.endswith("a checkpoint under way")
    assert Part.CHECKPOINT not in waiting.places[-1].memory.parts


@pytest.mark.parametrize("experiment", REAL)
@pytest.mark.parametrize("cluster", ["4x_gpu", "4x_gpu_colocated", "8x_gpu", "8x_gpu_colocated", "2x8_gpu"])
def test_every_published_recipe_fits_the_machines_that_are_offered(experiment: str, cluster: str) -> None:
    assert make_plan(recipe(experiment, f"cluster={cluster}")).fits


def test_adapters_fit_one_card() -> None:
    assert make_plan(recipe("internvl3_lora_1gpu")).fits


@pytest.mark.parametrize("experiment", REAL)
@pytest.mark.parametrize(
    "overrides",
    [
        ("cluster=1x_gpu",),
        ("cluster=4x_gpu", "cluster.gpu_memory_gib=40"),
        ("cluster=4x_gpu", "learner.gradient_checkpointing=false", "learner.tokens_per_micro_batch=32768"),
        ("cluster=4x_gpu", "learner.zero_stage=2"),
        ("cluster=4x_gpu_colocated", "rollout.gpu_memory_utilization=0.9"),
        ("cluster=4x_gpu", "rollout.gpu_memory_utilization=0.2"),
        ("cluster=8x_gpu", "cluster.gpu_memory_gib=24", "rollout.tensor_parallel=2", "rollout.num_engines=2"),
    ],
    ids=" ".join,
)
def test_what_is_refused_fits_with_the_overrides_it_is_told(experiment: str, overrides: tuple[str, ...]) -> None:
    """The overrides are typed as the refusal prints them, through Hydra."""
    plan = make_plan(recipe(experiment, *overrides))
    assert not plan.fits
    remedies = remedies_of(plan)
    assert remedies
    for remedy in remedies:
        assert make_plan(recipe(experiment, *overrides, *remedy.text.split())).fits, remedy


def test_the_command_refuses_in_one_line_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=internvl3", "cluster=1x_gpu"]) == 2
    printed = capsys.readouterr()
    assert "does not fit" in printed.out and "would fit: " in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("error: experiment internvl3 does not fit (shared GPU, sampling: ") and "ARGS=" in line


def test_the_command_plans_a_recipe_without_data_and_judge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=internvl3", "cluster=4x_gpu"]) == 0
    printed = capsys.readouterr().out
    for word in ("learner rank 0–2", "engine 0", "7,944,373,760", "KV cache", "micro-batches", "57,344"):
        assert word in printed


def test_typos_and_unknown_models_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=internvl3", "learner.zero_stag=2"]) == 2
    assert "did you mean 'learner.zero_stage'?" in capsys.readouterr().err
    assert main(["experiment=internvl3", "cluster=5x_gpu"]) == 2
    assert "no such cluster: '5x_gpu'" in capsys.readouterr().err
    assert main(["experiment=internvl3", "model.path=nobody/nothing"]) == 2
    assert "OpenGVLab/InternVL3-8B-hf" in capsys.readouterr().err


def test_a_run_is_warned_where_the_plan_does_not_fit() -> None:
    assert memory_note(recipe("internvl3", "cluster=4x_gpu")) is None
    assert memory_note(recipe("phantom")) is None
    note = memory_note(recipe("internvl3", "cluster=1x_gpu"))
    assert note is not None and note.startswith("memory plan: experiment internvl3 does not fit")


def test_gpus_that_are_smaller_than_said_are_planned_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for gib, fits in ((79, True), (40, False)):
        properties = SimpleNamespace(total_memory=gib * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number, found=properties: found)
        assert (memory_note(recipe("internvl3", "cluster=4x_gpu")) is None) == fits


def test_a_note_tells_of_samples_that_are_too_long() -> None:
    plan = make_plan(recipe("internvl3", "rollout.max_model_len=1024"))
    assert any("rollout.max_model_len=1024" in note for note in plan.notes)


@pytest.mark.parametrize("family", list(ToyFamily))
def test_toys_fit_a_laptop(family: ToyFamily) -> None:
    config = configure([f"model.toy_family={family.value}", "cluster.node_memory_gib=16"])
    assert make_plan(config).fits
    with pytest.raises(ResourceError):
        from mrpo.plan.__main__ import _plan

        _plan(["cluster.node_memory_gib=1"])
