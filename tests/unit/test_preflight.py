"""What is refused before anything expensive starts."""

from __future__ import annotations

import pytest

from mrpo.choices import Device, WeightTransfer
from mrpo.config import ClusterConfig, Config, LearnerConfig, RolloutConfig
from mrpo.errors import ResourceError
from mrpo.preflight import check_gpus, check_memory, gpus_needed


def gpu_config(transfer: WeightTransfer, *, engines: int = 2, tensor_parallel: int = 2, ranks: int = 3) -> Config:
    return Config(
        cluster=ClusterConfig(device=Device.GPU, weight_transfer=transfer),
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
    assert gpus_needed(Config()) == 0
    check_gpus(Config(), 0)


def test_gpus_add_up_unless_engine_and_learner_share_them() -> None:
    assert gpus_needed(gpu_config(WeightTransfer.NCCL)) == 2 * 2 + 3
    assert gpus_needed(gpu_config(WeightTransfer.IPC)) == 4
    assert gpus_needed(gpu_config(WeightTransfer.IPC, ranks=5)) == 5


@pytest.mark.parametrize(
    ("transfer", "needed", "sum_"),
    [(WeightTransfer.NCCL, 7, r"2 engines × 2 \+ 3 learner"), (WeightTransfer.IPC, 4, "2 engines × 2 shared with 3")],
)
def test_too_few_gpus_are_refused_with_the_sum_and_a_way_out(transfer: WeightTransfer, needed: int, sum_: str) -> None:
    config = gpu_config(transfer)
    check_gpus(config, needed)
    with pytest.raises(ResourceError, match=f"needs {needed} GPUs .*{sum_}.*cluster has {needed - 1}.*EXP=phantom"):
        check_gpus(config, needed - 1)
