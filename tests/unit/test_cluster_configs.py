"""Machines by one word: what `conf/cluster/` comes to, which setting wins, and what cannot sit together."""

from __future__ import annotations

import pytest

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.compose import choices, compose_config
from mrpo.config import Config
from mrpo.errors import ConfigError, ResourceError
from mrpo.placement import placement_of, to_begin
from mrpo.preflight import check_gpus

RECIPE = ["experiment=internvl3", "data.root=/data", "judge.url=http://localhost:1/v1", "judge.model=judge"]
# engines, ranks, GPUs taken, shared
MACHINES = {
    "1x_gpu": (1, 1, 1, True),
    "4x_gpu": (1, 3, 4, False),
    "4x_gpu_colocated": (4, 4, 4, True),
    "8x_gpu": (4, 4, 8, False),
    "8x_gpu_colocated": (8, 8, 8, True),
    "2x8_gpu": (8, 8, 16, False),
}


def composed(*overrides: str) -> Config:
    return compose_config([*RECIPE, *overrides])


def test_every_machine_is_described_here() -> None:
    assert set(choices("cluster")) == {"local_cpu", *MACHINES}


@pytest.mark.parametrize("name", MACHINES)
def test_one_word_sets_engines_ranks_and_transfer(name: str) -> None:
    num_engines, num_ranks, num_gpus, shared = MACHINES[name]
    config = composed(f"cluster={name}")
    assert config.cluster.device == Device.GPU
    assert (config.rollout.num_engines, config.learner.num_ranks) == (num_engines, num_ranks)
    assert config.cluster.num_nodes * config.cluster.gpus_per_node == num_gpus
    assert config.cluster.placement == (Placement.COLOCATED if shared else Placement.SPLIT)
    assert config.cluster.weight_transfer == (WeightTransfer.IPC if shared else WeightTransfer.NCCL)
    layout = placement_of(config)
    assert (layout.num_gpus, layout.shared) == (num_gpus, shared)


def test_the_command_lines_machine_wins_over_the_experiments_and_a_single_value_over_both() -> None:
    assert composed().cluster == composed("cluster=4x_gpu").cluster
    config = composed("cluster=8x_gpu", "rollout.gpu_memory_utilization=0.5", "learner.num_ranks=2")
    assert (config.rollout.num_engines, config.learner.num_ranks) == (4, 2)
    assert config.rollout.gpu_memory_utilization == 0.5
    assert composed("learner.num_ranks=2", "cluster=8x_gpu") == composed("cluster=8x_gpu", "learner.num_ranks=2")


def test_changing_machines_leaves_nothing_of_the_former_behind() -> None:
    config = composed("cluster=local_cpu")
    assert config.cluster == Config().cluster
    assert (config.rollout.num_engines, config.learner.num_ranks) == (1, 1)
    assert config.rollout.gpu_memory_utilization == Config().rollout.gpu_memory_utilization


@pytest.mark.parametrize("num_nodes", range(1, 9))
def test_eight_to_sixty_four_gpus_can_be_said(num_nodes: int) -> None:
    halves = [f"cluster.num_nodes={num_nodes}", f"rollout.num_engines={4 * num_nodes}"]
    config = composed("cluster=2x8_gpu", *halves, f"learner.num_ranks={4 * num_nodes}")
    assert placement_of(config).num_gpus == 8 * num_nodes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster=local_cpu", "cluster.placement=colocated"], ["sleep frees nothing", "cluster.placement=split"]),
        (["cluster=1x_gpu", "cluster.weight_transfer=nccl"], ["no two ranks", "cluster.weight_transfer=ipc"]),
        (["cluster=4x_gpu", "cluster.weight_transfer=ipc"], ["GPUs of their own", "cluster.placement=colocated"]),
        (
            ["cluster=4x_gpu_colocated", "learner.num_ranks=3"],
            ["rollout.num_engines=4 × rollout.tensor_parallel=1 = 4"],
        ),
        (["cluster=4x_gpu", "learner.num_ranks=4"], ["1 engines × 1 + 4 learner ranks = 5 GPUs", "=1 × ", "=4 = 4"]),
        (["cluster=8x_gpu", "rollout.tensor_parallel=3"], ["=3 does not divide cluster.gpus_per_node=8"]),
        (["rollout.num_engines=2", "rollout.max_engines=1"], ["min_engines=2, num_engines=2 and max_engines=1 must"]),
        (["rollout.num_engines=2", "rollout.min_engines=3"], ["min_engines=3, num_engines=2 and max_engines=2 must"]),
        (
            ["cluster=4x_gpu_colocated", "rollout.resources={A100: 0.1}"],
            ["gives each the GPUs of its learner ranks", "cluster.placement=split"],
        ),
        (["cluster=8x_gpu", "cluster.num_nodes=2"], ["cluster.num_nodes=2", "cluster.address=auto"]),
        (
            ["cluster=2x8_gpu", "rollout.num_engines=3", "rollout.tensor_parallel=4", "learner.num_ranks=5"],
            ["3 engines × 4 + 5 learner ranks = 17 GPUs", "=2 × cluster.gpus_per_node=8 = 16"],
        ),
    ],
)
def test_what_cannot_sit_there_is_refused_with_the_sum(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_run_begins_on_the_gpus_of_as_many_engines_as_it_needs() -> None:
    """A cluster of 8 with 5 GPUs left is enough for 4 ranks and 1 of the 4 engines."""
    config = composed("cluster=8x_gpu", "rollout.min_engines=1")
    assert (placement_of(config).num_gpus, placement_of(to_begin(config)).num_gpus) == (8, 5)
    check_gpus(config, 5)
    with pytest.raises(ResourceError, match=r"needs 5 GPUs \(1 engines × 1 \+ 4 learner ranks\) and the cluster has 4"):
        check_gpus(config, 4)


def test_an_engine_lies_on_one_node_and_the_learner_on_as_few_as_can_be() -> None:
    layout = placement_of(
        composed("cluster=2x8_gpu", "rollout.tensor_parallel=2", "rollout.num_engines=2", "learner.num_ranks=12")
    )
    assert [(bundle.node, bundle.gpus, bundle.ranks, bundle.engines) for bundle in layout.bundles] == [
        (0, 8, (0, 1, 2, 3, 4, 5, 6, 7), ()),
        (1, 4, (8, 9, 10, 11), ()),
        (1, 2, (), (0,)),
        (1, 2, (), (1,)),
    ]
    assert (layout.bundle_of_rank(9), layout.bundle_of_engine(1)) == (1, 3)
    assert [(gpu.node, gpu.index, gpu.engine, gpu.engine_rank) for gpu in layout.gpus[-3:]] == [
        (1, 5, 0, 1),
        (1, 6, 1, 0),
        (1, 7, 1, 1),
    ]


def test_everything_that_adds_up_finds_its_node() -> None:
    for ranks in range(1, 16):
        for tensor_parallel in (1, 2, 4, 8):
            engines = (16 - ranks) // tensor_parallel
            if engines:
                sizes = [
                    f"rollout.tensor_parallel={tensor_parallel}",
                    f"rollout.num_engines={engines}",
                    f"learner.num_ranks={ranks}",
                ]
                layout = placement_of(composed("cluster=2x8_gpu", *sizes))
                places = [(gpu.node, gpu.index) for gpu in layout.gpus]
                assert len(set(places)) == len(places) == ranks + engines * tensor_parallel
                assert max(index for _, index in places) < 8


def test_sharing_puts_a_rank_beside_every_engine_rank() -> None:
    sizes = ["rollout.num_engines=2", "rollout.tensor_parallel=2"]
    layout = placement_of(composed("cluster=4x_gpu_colocated", *sizes))
    assert [(gpu.rank, gpu.engine, gpu.engine_rank) for gpu in layout.gpus] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 1),
    ]


def test_engines_or_ranks_alone_share_nothing() -> None:
    config = composed("cluster=1x_gpu")
    alone = placement_of(config, learner=False)
    assert (alone.num_gpus, alone.shared, alone.bundles[0].engines) == (1, False, (0,))
    assert placement_of(config, engines=False).bundles[0].ranks == (0,)


def test_ranks_on_a_cpu_claim_a_core_each_and_engines_none() -> None:
    layout = placement_of(compose_config(["learner.num_ranks=2"]))
    assert (layout.num_cpus, layout.num_gpus, layout.bundle_of_engine(0)) == (2, 0, None)
