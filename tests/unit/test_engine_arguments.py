"""What vLLM is asked to start on each kind of machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrpo.compose import compose_config
from mrpo.config import Config
from mrpo.errors import ConfigError
from rollout.engine_arguments import engine_arguments
from rollout.spec import EngineSpec, engine_environment, engine_specs

RECIPE = ["experiment=internvl3", "data.root=/data", "judge.url=http://localhost:1/v1", "judge.model=judge"]


def spec(*overrides: str) -> EngineSpec:
    return engine_specs(compose_config([*RECIPE, *overrides]), "/model", "internvl", log_dir=None)[0]


def phantom(*overrides: str) -> EngineSpec:
    return engine_specs(compose_config(overrides), "/model", "qwen2_5_vl", log_dir=None)[0]


def test_an_engine_with_gpus_of_its_own_never_sleeps() -> None:
    arguments = engine_arguments(spec("cluster=4x_gpu"))
    assert arguments["enable_sleep_mode"] is False
    assert arguments["gpu_memory_utilization"] == 0.85
    assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (1, "uni")
    assert arguments["dtype"] == "bfloat16"
    assert "enable_lora" not in arguments


def test_an_engine_of_several_gpus_runs_its_ranks_as_processes_of_its_own() -> None:
    arguments = engine_arguments(spec("cluster=8x_gpu", "rollout.tensor_parallel=2", "rollout.num_engines=2"))
    assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (2, "mp")


def test_an_engine_that_shares_its_gpu_can_sleep() -> None:
    shared = spec("cluster=1x_gpu")
    assert shared.sleeps
    arguments = engine_arguments(shared)
    assert arguments["enable_sleep_mode"] is True
    assert arguments["gpu_memory_utilization"] == 0.45


def test_a_cpu_engine_knows_neither_sleep_nor_gpu_memory() -> None:
    arguments = engine_arguments(phantom())
    assert not {"enable_sleep_mode", "gpu_memory_utilization"} & arguments.keys()
    assert (arguments["dtype"], arguments["enable_chunked_prefill"]) == ("float32", False)


def test_an_engine_beside_ranks_is_shown_their_gpus() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in engine_environment(spec("cluster=4x_gpu"))
    shared = replace(spec("cluster=1x_gpu"), gpu_ids=("2", "3"))
    assert engine_environment(shared)["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_handles_of_gpu_memory_may_be_pickled_and_nothing_else_is() -> None:
    assert engine_environment(spec("cluster=1x_gpu"))["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    for other in (spec("cluster=4x_gpu"), phantom()):
        assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in engine_environment(other)


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (200, 256)])
def test_adapters_get_the_least_room_that_holds_them(rank: int, room: int) -> None:
    arguments = engine_arguments(phantom(f"learner.lora.r={rank}", "learner.lora.to_engines=adapter"))
    assert (arguments["enable_lora"], arguments["max_lora_rank"], arguments["max_loras"]) == (True, room, 1)
    assert "q_proj" in arguments["lora_target_modules"] and "lm_head" not in arguments["lora_target_modules"]


def test_room_is_made_on_the_layers_that_are_trained_alone() -> None:
    asked = ["learner.lora.r=8", "learner.lora.to_engines=adapter", "learner.lora.targets=[q_proj,v_proj]"]
    assert engine_arguments(phantom(*asked))["lora_target_modules"] == ["q_proj", "v_proj"]


def test_merged_adapters_need_no_room() -> None:
    assert "enable_lora" not in engine_arguments(phantom("learner.lora.r=8", "learner.lora.to_engines=merged"))


def test_adapters_vllm_has_no_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner\.lora\.r=513 .*512.*to_engines=merged"):
        engine_arguments(phantom("learner.lora.r=513", "learner.lora.to_engines=adapter"))


def test_the_default_run_needs_no_adapter() -> None:
    assert engine_specs(Config(), "/model", "qwen2_5_vl", log_dir=None)[0].adapter_rank == 0
