"""Nodes that do not share the run folder are found out before anything starts. Ray's part is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

import mrpo.parts
import mrpo.sft.parts
from mrpo import cluster_check
from mrpo.choices import Device
from mrpo.cluster_check import Node, check_shared, trouble_with
from mrpo.config import ClusterConfig, Config, RolloutConfig
from mrpo.console import Console
from mrpo.data.load import Dataset
from mrpo.errors import ResourceError
from mrpo.faults import FaultLog
from mrpo.judge_spending import SpendingLedger

CPU, GPU = Config(), Config(cluster=ClusterConfig(device=Device.GPU))
PINNED = Config(rollout=RolloutConfig(resources={"engine": 1.0}))


def node(name: str, **resources: float) -> Node:
    return Node(node_id=name, name=f"node {name}", resources=resources, installed=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the nodes that were asked: `far` has another disk, `dead` ends when it is asked."""
    names: list[str] = []

    def ask(node_id: str, function: Callable[[Path, float], str], probe: Path, patience_s: float) -> str | None:
        names.append(node_id)
        assert probe.is_file()
        return None if node_id == "dead" else function(Path("/far") / probe.name if node_id == "far" else probe, 0.0)

    def get(answer: str | None, timeout: float) -> str:
        if answer is None:
            raise WorkerCrashedError
        return answer

    monkeypatch.setattr(cluster_check, "submit_to", ask)
    monkeypatch.setattr(cluster_check.ray, "get", get)
    return names


def test_a_folder_that_all_share_is_left_as_it_was(asked: list[str], tmp_path: Path) -> None:
    check_shared(CPU, [node("a", CPU=1.0), node("b", CPU=4.0)], tmp_path)
    assert asked == ["a", "b"]
    assert not list(tmp_path.iterdir())


def test_nodes_that_do_not_see_it_are_named(asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        check_shared(CPU, [node(name, CPU=1.0) for name in ("near", "far", "dead")], tmp_path)
    said = str(caught.value)
    assert said.startswith(f"2 of 3 nodes that may hold a learner rank or an engine do not share {tmp_path}: ")
    assert "node far does not see it" in said
    assert "node dead does not say whether it sees it (WorkerCrashedError" in said
    assert said.endswith("set runs_dir=<shared folder>")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "expected"), [(CPU, ["cpu", "gpu"]), (GPU, ["gpu"]), (PINNED, ["cpu", "gpu", "engines"])]
)
def test_nodes_for_judges_alone_need_not_see_it(
    config: Config, expected: list[str], asked: list[str], tmp_path: Path
) -> None:
    nodes = [node("cpu", CPU=8.0), node("gpu", CPU=8.0, GPU=1.0), node("engines", engine=2.0), node("judge", judge=2.0)]
    check_shared(config, nodes, tmp_path)
    assert asked == expected


def test_a_folder_that_is_seen_and_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    assert trouble_with(tmp_path / "probe", 0.0) == ""
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert trouble_with(tmp_path / "probe", 0.0) == "may not write there"


def test_every_start_of_ray_names_the_folder_that_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, written: Path | None, **__: object) -> None:
        raise ResourceError(f"written: {written}")

    monkeypatch.setattr(mrpo.parts, "start_ray", start)
    monkeypatch.setattr(mrpo.sft.parts, "start_ray", start)
    config = Config(cache_dir=str(tmp_path))
    dataset = Dataset(train=[], test=[], root=tmp_path)
    common: dict[str, Any] = {"log_dir": tmp_path, "after_ray": lambda: None}
    run = common | {"similarity": None, "judge_ledger": SpendingLedger(tmp_path / "spending.jsonl")}

    def parts(model_folder: Path | None) -> AbstractAsyncContextManager[object]:
        return mrpo.parts.running_evaluation_parts(config, Console(1), model_folder=model_folder, **run)

    async def entered(context: AbstractAsyncContextManager[object]) -> None:
        async with context:
            pass

    starts = [
        lambda: entered(
            mrpo.parts.running_parts(config, dataset, Console(1), model_folder=tmp_path, faults=FaultLog(None), **run)
        ),
        lambda: entered(parts(tmp_path)),
        lambda: entered(mrpo.sft.parts.running_learner(config, tmp_path, Console(1), **common)),
    ]
    for begin in starts:
        with pytest.raises(ResourceError, match=f"written: {tmp_path}"):
            asyncio.run(begin())
    with pytest.raises(ResourceError, match="written: None"):  # only judges work
        asyncio.run(entered(parts(None)))
