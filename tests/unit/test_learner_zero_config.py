"""From our settings to DeepSpeed's."""

from __future__ import annotations

import pytest

from learner.zero_config import PERSISTENT_ELEMENTS, reference_config, zero_config
from mrpo.config import LearnerConfig
from mrpo.errors import ConfigError


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_clipping_and_dtype_are_passed_on(stage: int) -> None:
    config = zero_config(LearnerConfig(zero_stage=stage, max_grad_norm=0.7), bf16=True, on_gpu=True)
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == 0.7
    assert config["bf16"] == {"enabled": True}


def test_the_learner_decides_where_a_step_ends() -> None:
    assert zero_config(LearnerConfig(), bf16=False, on_gpu=False)["managed_gradient_accumulation"] is False


def test_without_zero_the_optimizer_clips_and_deepspeed_does_not() -> None:
    assert zero_config(LearnerConfig(zero_stage=0), bf16=False, on_gpu=False)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(("stage", "on_gpu", "expected"), [(2, True, True), (2, False, False), (3, True, False)])
def test_communication_overlaps_only_where_deepspeed_can(stage: int, on_gpu: bool, expected: bool) -> None:
    config = zero_config(LearnerConfig(zero_stage=stage), bf16=False, on_gpu=on_gpu)
    assert config["zero_optimization"]["overlap_comm"] is expected


def test_offload_moves_parameters_only_under_zero_3() -> None:
    two = zero_config(LearnerConfig(zero_stage=2, cpu_offload=True), bf16=True, on_gpu=True)["zero_optimization"]
    three = zero_config(LearnerConfig(zero_stage=3, cpu_offload=True), bf16=True, on_gpu=True)["zero_optimization"]
    assert two["offload_optimizer"]["device"] == "cpu" and "offload_param" not in two
    assert three["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(("bf16", "offload", "named"), [(True, False, "bfloat16"), (False, True, "cpu_offload")])
def test_stage_0_refuses_what_needs_master_weights(bf16: bool, offload: bool, named: str) -> None:
    with pytest.raises(ConfigError, match=f"zero_stage=0 .*{named}.*use zero_stage=1"):
        zero_config(LearnerConfig(zero_stage=0, cpu_offload=offload), bf16=bf16, on_gpu=False)


def test_the_reference_is_partitioned_and_never_offloads_without_being_asked() -> None:
    config = reference_config(LearnerConfig(zero_stage=3), bf16=True, on_gpu=True)
    assert config["zero_optimization"]["stage"] == 3 and "offload_param" not in config["zero_optimization"]


@pytest.mark.parametrize(("on_gpu", "expected"), [(True, PERSISTENT_ELEMENTS), (False, 0)])
def test_on_a_cpu_zero_3_partitions_small_tensors_too(on_gpu: bool, expected: int) -> None:
    """A toy's tensors are nearly all small: kept whole, they would prove nothing about partitions."""
    for make in (zero_config, reference_config):
        stage = make(LearnerConfig(zero_stage=3), bf16=False, on_gpu=on_gpu)["zero_optimization"]
        assert stage["stage3_param_persistence_threshold"] == expected


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [(1, False, False), (2, False, True), (2, True, False), (3, False, True), (3, True, True)],
)
def test_bfloat16_gradients_add_up_in_float32_where_it_costs_no_offloaded_memory(
    stage: int, offload: bool, expected: bool
) -> None:
    learner = LearnerConfig(zero_stage=stage, cpu_offload=offload)
    config = zero_config(learner, bf16=True, on_gpu=True)
    assert (config.get("data_types") == {"grad_accum_dtype": "fp32"}) == expected
    assert "data_types" not in zero_config(learner, bf16=False, on_gpu=True), "float32 is its own"
