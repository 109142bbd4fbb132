"""What is said of nodes that join while a run is under way. Ray's part is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, WorkerCrashedError

from mrpo.faults import FaultLog
from mrpo.installation import Installation, installation
from mrpo.ray_nodes import nodes_watched, why

HEAD, WORKER, LATER = "a" * 40, "b" * 40, "c" * 40
Answer = Callable[[Installation], Installation]


def fails(error: BaseException) -> Answer:
    def answer(here: Installation) -> Installation:
        raise error

    return answer


def older(here: Installation) -> Installation:
    versions = {name: wanted for name, wanted in here.versions.items() if name != "deepspeed"}
    return replace(here, versions={**versions, "vllm": "0.1.0"})


async def two_join(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answers as told, the second has what is installed here; each is asked once."""
    asked: list[str] = []
    alive = {HEAD: "10.0.0.1"}

    async def on_node(node_id: str, function: Callable[[], Any], **others: Any) -> Any:
        assert function is installation
        asked.append(node_id)
        return answer(installation()) if node_id == WORKER else installation()

    monkeypatch.setattr("mrpo.ray_nodes.alive_nodes", lambda: dict(alive))
    monkeypatch.setattr("mrpo.ray_nodes.on_node", on_node)
    async with asyncio.timeout(60.0), nodes_watched(FaultLog(None), every_s=0.01) as watch:
        for node_id, address in ((WORKER, "node-b 10.0.0.2"), (LATER, "10.0.0.3")):
            alive[node_id] = address
            while node_id not in asked:
                await asyncio.sleep(0.01)
        assert watch.num_joined == 2
    assert asked == [WORKER, LATER]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (older, "has vllm 0.1.0 instead of "),
        (fails(WorkerCrashedError()), "does not say what is installed there (WorkerCrashedError: "),
        (fails(TimeoutError()), "does not say what is installed there (no answer within 120 s)"),
    ],
)
@pytest.mark.asyncio
async def test_one_that_differs_is_named_once_with_the_remedy_and_others_are_asked_all_the_same(
    answer: Answer, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await two_join(answer, monkeypatch)
    (record,) = [item for item in caplog.records if item.name == "mrpo.ray_nodes"]
    said = record.getMessage()
    assert said.startswith(f"node node-b 10.0.0.2 (bbbbbbbb) has joined and {words}")
    assert "`ray stop` there, install what the others have" in said


@pytest.mark.asyncio
async def test_nothing_is_said_of_one_that_has_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await two_join(lambda here: here, monkeypatch)
    assert [item for item in caplog.records if item.name == "mrpo.ray_nodes"] == []


def test_why_a_node_did_not_answer_is_half_a_line() -> None:
    def task_error(cause: Exception) -> RayError:
        error = RayTaskError.__new__(RayTaskError)  # its `__init__` asks Ray where it runs
        error.cause = cause
        return error

    assert why(task_error(ModuleNotFoundError("No module named 'mrpo'"))) == "No module named 'mrpo'"
    assert why(task_error(AssertionError())) == "AssertionError"
    assert why(GetTimeoutError("Get timed out"), 5.0) == "no answer within 5 s"
