"""What an engine is built from."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from mrpo.choices import Device
from mrpo.config import ClusterConfig, Config, RolloutConfig
from mrpo.errors import ConfigError
from rollout.spec import cores_of_engines, engine_environment, engine_specs


def config(**rollout: object) -> Config:
    return Config(rollout=RolloutConfig(**rollout))  # type: ignore[arg-type]


def test_every_engine_gets_its_own_name_and_log() -> None:
    specs = engine_specs(config(num_engines=2, cpu_cores="0|1,2-3"), "/model", "qwen2_5_vl", log_dir="/run/logs")
    assert [(spec.name, spec.cores, spec.log_file) for spec in specs] == [
        ("engine-0", (0,), "/run/logs/engine-0.log"),
        ("engine-1", (1, 2, 3), "/run/logs/engine-1.log"),
    ]
    assert pickle.loads(pickle.dumps(specs)) == specs


def test_there_is_a_spec_for_every_engine_that_may_join() -> None:
    specs = engine_specs(config(num_engines=2, min_engines=1, max_engines=3), "/model", "qwen2_5_vl", log_dir=None)
    assert [spec.name for spec in specs] == ["engine-0", "engine-1", "engine-2"]
    assert (specs[0].rollout.engines_to_begin, specs[0].rollout.engines_at_most) == (1, 3)


def test_one_list_of_cores_serves_all_engines() -> None:
    assert cores_of_engines("0-1", 2) == [(0, 1), (0, 1)]
    assert cores_of_engines(None, 2) == [(), ()]


@pytest.mark.parametrize("cpu_cores", ["0|1", "first", "", "3-1", "0,,1"])
def test_cores_that_make_no_sense_are_refused(cpu_cores: str) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.cpu_cores"):
        cores_of_engines(cpu_cores, 3)


def test_environment_binds_threads_to_the_cores_given() -> None:
    (spec,) = engine_specs(config(cpu_cores="2-3"), "/model", "qwen2_5_vl", log_dir=None)
    environment = engine_environment(spec)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["TORCHDYNAMO_DISABLE"] == "1"


def test_gpu_engines_keep_vllms_own_processes() -> None:
    (spec,) = engine_specs(
        replace(config(), cluster=ClusterConfig(device=Device.GPU)), "/model", "qwen2_5_vl", log_dir=None
    )
    environment = engine_environment(spec)
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert "OMP_NUM_THREADS" not in environment
