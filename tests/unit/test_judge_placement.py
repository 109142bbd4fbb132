"""A judge of the run's own on the GPUs: counted, placed, planned, and refused where it does not fit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mrpo.compose import compose_config
from mrpo.config import Config
from mrpo.errors import ConfigError, ResourceError
from mrpo.judge_model import own_judge
from mrpo.placement import placement_of
from mrpo.plan.__main__ import configure
from mrpo.plan.plan import make_plan
from mrpo.plan.tables import WIDTH, show
from mrpo.preflight import check_gpus

OWN = ["judge=vllm", "judge.vllm.model=Qwen/Qwen3-VL-8B-Instruct"]
SPLIT = ["experiment=internvl3", "cluster=8x_gpu", "rollout.num_engines=2", "learner.num_ranks=4", "data.root=x"]
SHARED = ["experiment=internvl3_lora_1gpu", "cluster=4x_gpu_colocated", "rollout.num_engines=2", "learner.num_ranks=2"]


def composed(*arguments: str) -> Config:
    return configure([*arguments, *OWN])


def test_servers_have_gpus_of_their_own() -> None:
    layout = placement_of(composed(*SPLIT, "judge.vllm.tensor_parallel=2"))
    assert layout.num_gpus == 4 + 2 + 2
    assert [(gpu.rank, gpu.engine, gpu.judge) for gpu in layout.gpus] == [
        *((rank, None, None) for rank in range(4)),
        (None, 0, None),
        (None, 1, None),
        (None, None, 0),
        (None, None, 0),
    ]


def test_beside_a_shared_layout_too() -> None:
    layout = placement_of(composed(*SHARED, "judge.vllm.num_servers=2"))
    assert [(gpu.rank, gpu.engine, gpu.judge) for gpu in layout.gpus] == [
        (0, 0, None),
        (1, 1, None),
        (None, None, 0),
        (None, None, 1),
    ]


def test_an_evaluation_has_them_and_supervised_training_has_not() -> None:
    config = composed(*SPLIT)
    assert placement_of(config, learner=False).num_gpus == 3
    assert placement_of(config, engines=False).num_gpus == 4
    assert placement_of(config, learner=False, engines=False, judge=True).num_gpus == 1


def test_on_a_cpu_they_claim_nothing() -> None:
    config = compose_config(["experiment=phantom", *OWN])
    assert placement_of(config).num_gpus == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["judge.vllm.num_servers=3"], ["4 learner ranks + 3 judge servers × 1 = 9 GPUs", "judge.vllm.num_servers"]),
        (["judge.vllm.tensor_parallel=3"], ["judge.vllm.tensor_parallel=3 does not divide cluster.gpus_per_node=8"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sum(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*SPLIT, *arguments)
    assert all(word in str(caught.value) for word in words), caught.value


def test_bundles_that_no_node_holds_are_refused() -> None:
    wide = ["experiment=internvl3", "cluster=2x8_gpu", "data.root=x", "learner.num_ranks=5"]
    layout = placement_of(composed(*wide, "rollout.num_engines=1", "judge.vllm.tensor_parallel=8"))
    assert [(bundle.node, bundle.gpus) for bundle in layout.bundles] == [(1, 5), (1, 1), (0, 8)]
    # Twelve of twelve in all, and yet the last two are of two nodes.
    odd = ["cluster.gpus_per_node=6", "rollout.num_engines=2", "rollout.tensor_parallel=2"]
    with pytest.raises(ConfigError, match="2 GPUs of one node are needed together"):
        composed(*wide, *odd, "judge.vllm.tensor_parallel=3")


def test_too_few_gpus_are_told_before_anything_starts() -> None:
    config = composed(*SPLIT)
    check_gpus(config, 7)
    with pytest.raises(
        ResourceError, match=r"needs 7 GPUs \(2 engines × 1 \+ 4 learner ranks \+ 1 judge servers × 1\)"
    ):
        check_gpus(config, 6)


def test_the_plan_names_them_and_their_memory() -> None:
    plan = make_plan(composed(*SHARED, "judge.vllm.gpu_memory_utilization=0.8"))
    (place,) = [place for place in plan.places if place.name == "judge GPU"]
    assert place.number == 1
    assert place.limit == int(0.8 * plan.config.cluster.gpu_memory_gib * 2**30)
    assert place.fits
    assert [item.number for item in plan.places if item.name.startswith("shared GPU")] == [2, 2]
    screen = io.StringIO()
    show(plan, [], Console(file=screen, width=WIDTH))
    assert "judge server 0" in screen.getvalue()


def test_a_model_that_leaves_no_cache_does_not_fit() -> None:
    plan = make_plan(composed(*SHARED, "judge.vllm.gpu_memory_utilization=0.2"))
    (place,) = [place for place in plan.places if place.name == "judge GPU"]
    assert not place.fits


def test_a_judge_of_unknown_size_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    plan = make_plan(configure([*SHARED, "judge=vllm", f"judge.vllm.model={tmp_path}"]))
    assert [note for note in plan.notes if note.startswith("memory of the judge is not estimated")]
    assert not [place for place in plan.places if place.name == "judge GPU"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["judge=vllm"], r"judge\.kind=vllm needs judge\.vllm\.model"),
        ([*OWN, "judge.url=http://a/v1"], r"starts its own servers, but judge\.url='http://a/v1'"),
        ([*OWN, "judge.vllm.max_model_len=2048"], r"leaves no room for a prompt in judge\.vllm\.max_model_len=2048"),
        ([*OWN, "judge.vllm.tensor_parallel=2"], r"judge\.vllm\.tensor_parallel=2 needs GPUs"),
    ],
)
def test_settings_that_contradict_each_other(arguments: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        compose_config(["experiment=phantom", *arguments])


def test_the_name_changes_with_the_files_and_not_with_the_place(tmp_path: Path) -> None:
    def name_of(place: str, weights: bytes) -> str:
        folder = tmp_path / place / "judge"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        config = compose_config(["experiment=phantom", "judge=vllm", f"judge.vllm.model={folder}"])
        return own_judge(config.judge).served_name

    first, copy, other = name_of("a", b"1"), name_of("b", b"1"), name_of("c", b"2")
    assert first == copy != other
    assert first.startswith("judge@")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    config = compose_config(["experiment=phantom", "judge=vllm", f"judge.vllm.model={tmp_path}"])
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        own_judge(config.judge)
