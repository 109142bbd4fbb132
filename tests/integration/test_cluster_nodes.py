"""Several Ray nodes, one a host of its own: what is checked there, who lands where, and nodes that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrpo.cluster_check import Node, check_one_host
from mrpo.config import Config, RolloutConfig
from mrpo.errors import ResourceError
from mrpo.faults import FaultKind, read_faults
from mrpo.installation import installation
from mrpo.run_reading import list_checkpoints, read_metrics
from tests.integration.cluster_world import OTHER_HOST, command, in_own_process
from tests.integration.judge_outage_run import completions_of, num_steps_of, running, untouched
from tests.locations import REPOSITORY

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return in_own_process("checks", tmp_path_factory.mktemp("checks"))


def test_a_worker_of_another_host_and_folder_finds_the_package_and_vllm_its_plugin(checks: Any) -> None:
    there = checks["elsewhere"]
    assert there["cwd"] == "/"
    assert Path(there["file"]).is_relative_to(REPOSITORY)
    assert "mrpo_weight_transfer" in there["plugins"]
    assert "shm" in checks["vllm there"]["backends"]


def test_shared_memory_is_refused_across_hosts_by_the_receiver(checks: Any) -> None:
    said = checks["vllm there"]["said"]
    assert "weight transfer 'shm' needs learner and engine on one host" in said
    if checks["renames"]:
        assert checks["elsewhere"]["host"] != checks["here"]
        assert f"the engine on '{OTHER_HOST}:" in said


def test_shared_memory_is_refused_across_hosts_before_anything_starts(checks: Any) -> None:
    assert checks["same host"].startswith("passed")
    assert checks["no room on the other"].startswith("passed"), "judge actors may be anywhere"
    if not checks["renames"]:  # the same question about two hosts that are only said to be two
        assert checks["two hosts"].startswith("passed")
        pytest.skip("this kernel gives nobody a host name of his own (unshare --user --uts); see the test below")
    assert "may land on 2 hosts" in checks["two hosts"]
    assert f"({OTHER_HOST}, " in checks["two hosts"]


def test_a_folder_that_nodes_do_not_share_is_refused_before_anything_starts(checks: Any) -> None:
    assert checks["a shared folder"].startswith("passed")
    if not checks["renames"]:
        pytest.skip("this kernel gives nobody a disk of his own (unshare --user --mount); see tests/unit")
    said = checks["a folder of each"]
    assert said.startswith("1 of 3 nodes that may hold a learner rank or an engine do not share ")
    assert f"({OTHER_HOST}, " in said
    assert "does not see it; " in said


def test_engines_pinned_to_the_host_of_the_ranks_are_accepted_and_others_refused() -> None:
    from dataclasses import replace

    here = installation()
    ranks = Node(node_id="a", name="a", resources={"CPU": 2.0, "engine": 1.0}, installed=here)
    other = Node(node_id="b", name="b", resources={"engine": 1.0}, installed=replace(here, host="other:boot"))
    check_one_host(Config(), [ranks, other])
    pinned = Config(rollout=RolloutConfig(resources={"engine": 1.0}))
    with pytest.raises(ResourceError, match=r"2 hosts \(a, b\)"):
        check_one_host(pinned, [ranks, other])


def test_a_judge_begins_with_the_actors_there_is_room_for_and_others_come_and_go(checks: Any) -> None:
    one, both, other = checks["judge actors"]
    assert len(one) == len(other) == 1
    assert sorted(both) == ["judge-0", "judge-1"]
    assert {*one, *other} == {*both}


def test_nodes_with_other_software_are_named_with_what_they_have(checks: Any) -> None:
    assert "1 of 3 nodes" in checks["older vllm"]
    assert "has vllm 0.1.0 instead of " in checks["older vllm"]
    assert "cannot run mrpo (" in checks["no mrpo"]
    assert "mrpo" in checks["no mrpo"].partition("cannot run mrpo (")[2]


def test_a_node_that_joins_later_with_other_software_is_warned_of_once(checks: Any) -> None:
    (older,), (absent,) = checks["older vllm, joining"], checks["no mrpo, joining"]
    assert ") has joined and has vllm 0.1.0 instead of " in older
    assert ") has joined and cannot run mrpo (" in absent
    assert all("`ray stop` there" in said for said in (older, absent))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("training")
    return in_own_process("training", folder), folder


def test_a_run_over_four_nodes_places_its_actors_as_told_and_outlives_a_node(training: tuple[Any, Path]) -> None:
    found, folder = training
    assert found["before"] == {
        "engine-0": found["before"]["engine-0"],
        "engine-1": ({"first", "second"} - {found["before"]["engine-0"]}).pop(),
        "judge-0": "judges",
        "judge-1": "judges",
        "learner-0": "head",
    }
    lost = next(name for name, place in found["before"].items() if place == "second")
    kept = next(name for name, place in found["before"].items() if place == "first")
    assert found["after"][kept] == "first"
    assert found["after"]["learner-0"] == "head"
    assert {name.split(".")[0] for name, place in found["after"].items() if place == "third"} == {lost}
    assert {name for name, place in found["after"].items() if place == "new judges"} == {"judge-0", "judge-1"}
    assert found["code"] == 130, found["shown"]
    (run,) = (folder / "runs").glob("*/*/")
    rows = read_metrics(run).rows
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert list_checkpoints(run)[-1].step == len(rows) >= found["at_loss"] + 4
    kinds = {fault.kind for fault in read_faults(run)}
    assert {FaultKind.ENGINE_LOST, FaultKind.JUDGE_ACTOR_LOST} <= kinds
    assert not [name for row in rows for name in row if name.startswith("judge/failures/")]


@pytest.mark.slow
def test_a_run_over_four_nodes_of_which_two_are_lost_comes_to_the_same_as_one_on_one(
    training: tuple[Any, Path], tmp_path: Path
) -> None:
    """By metrics and completions, step by step, for as long as the disturbed one went on."""
    _, folder = training
    (disturbed,) = (folder / "runs").glob("*/*/")
    steps = len(read_metrics(disturbed).rows)
    with running(command(folder, tmp_path)) as run:
        run.wait_for(lambda: num_steps_of(tmp_path) >= steps, f"{steps} steps")
    (whole,) = tmp_path.glob("*/*/")
    assert untouched(disturbed) == untouched(whole)[:steps]
    completions = completions_of(disturbed)
    assert completions == completions_of(whole)[: len(completions)]
