"""What is refused before anything expensive starts."""

from __future__ import annotations

import pytest

from mrpo.choices import Device, Placement
from mrpo.config import ClusterConfig, Config, LearnerConfig, RolloutConfig
from mrpo.errors import ResourceError
from mrpo.preflight import check_gpus, check_memory


def gpu_config(placement: Placement, *, engines: int = 2, tensor_parallel: int = 2, ranks: int = 4) -> Config:
    return Config(
        cluster=ClusterConfig(device=Device.GPU, placement=placement),
        rollout=RolloutConfig(num_engines=engines, tensor_parallel=tensor_parallel),
        learner=LearnerConfig(num_ranks=ranks),
    )


def test_memory_that_no_machine_has_is_refused_with_the_setting() -> None:
    config = Config(cluster=ClusterConfig(min_free_memory_gib=1e6))
    with pytest.raises(ResourceError, match=r"cluster\.min_free_memory_gib=1e\+06 are needed") as caught:
        check_memory(config)
    assert "\n" not in str(caught.value)


def test_a_limit_of_zero_always_passes() -> None:
    check_memory(Config(cluster=ClusterConfig(min_free_memory_gib=0.0)))


def test_cpu_runs_need_no_gpu() -> None:
    check_gpus(Config(), 0)


@pytest.mark.parametrize(
    ("placement", "needed", "sum_"),
    [(Placement.SPLIT, 8, r"2 engines × 2 \+ 4 learner"), (Placement.COLOCATED, 4, "2 engines × 2 shared with 4")],
)
def test_too_few_gpus_are_refused_with_the_sum_and_a_way_out(placement: Placement, needed: int, sum_: str) -> None:
    config = gpu_config(placement)
    check_gpus(config, needed)
    with pytest.raises(ResourceError, match=f"needs {needed} GPUs .*{sum_}.*cluster has {needed - 1}.*EXP=phantom"):
        check_gpus(config, needed - 1)


def test_a_command_without_learner_or_engines_needs_no_gpus_for_them() -> None:
    config = gpu_config(Placement.SPLIT, ranks=3)
    check_gpus(config, 4, learner=False)
    check_gpus(config, 3, engines=False)
    with pytest.raises(ResourceError, match=r"needs 3 GPUs \(3 learner ranks\)"):
        check_gpus(config, 2, engines=False)
