"""Judge actors and their limiter that die or hang: noticed, named, replaced, and no ruling is lost or made up."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from judge_server import ScriptedServer, all_ones, judge_request, reply

from judge.pool import RayJudgePool
from mrpo.errors import ResourceError
from mrpo.faults import Fault, FaultKind, FaultLog, read_faults
from mrpo.types import JudgeDepths, JudgeFailure, Judgement, Verdicts
from tests.integration.judge_pools import with_pool
from tests.integration.test_judge_pool import GOOD, config_of

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]
RECOVERY_S = 60.0


def process_of(actor: Any) -> psutil.Process:
    """Of an actor on this machine."""

    def pid(_: Any) -> int:
        import os

        return os.getpid()

    number: int = ray.get(actor.__ray_call__.remote(pid))
    return psutil.Process(number)


def ruled(judgements: list[Judgement]) -> bool:
    return all(isinstance(judgement.outcome, Verdicts) for judgement in judgements)


async def mended(faults: FaultLog, folder: Path, number: int) -> list[Fault]:
    """The faults, once so many are over."""
    ends_at = time.monotonic() + RECOVERY_S
    while time.monotonic() < ends_at:
        found = read_faults(folder)
        if sum(fault.recovery_s is not None for fault in found) >= number:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"not mended within {RECOVERY_S} s: {read_faults(folder)}")


def test_an_actor_that_hangs_is_killed_and_replaced_and_its_calls_are_made_elsewhere(
    image: str, tmp_path: Path
) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")

    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], list[Judgement], list[Fault], int, int]:
        hanging, other = process_of(ray.get_actor("judge-0")), process_of(ray.get_actor("judge-1"))
        calls = asyncio.gather(*(pool.judge(judge_request(image, key=str(n))) for n in range(8)))
        while len(server.requests) < 8:
            await asyncio.sleep(0.02)
        hanging.send_signal(signal.SIGSTOP)
        first = await calls
        found = await mended(faults, tmp_path, 1)
        assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE
        new = process_of(ray.get_actor("judge-0"))
        later = await asyncio.gather(*(pool.judge(judge_request(image, key=str(n))) for n in range(8)))
        return first, later, found, new.pid, other.pid

    def script(number: int, received: Any) -> Any:
        return reply(GOOD, delay_s=1.0) if number < 8 else all_ones(received)

    with ScriptedServer(script) as server:
        config = config_of(server.url, num_actors=2, actor_timeout_s=4.0, deadline_s=60.0)
        first, later, found, new, other = with_pool(config, scenario, faults=faults, log_dir=tmp_path)
    assert ruled([*first, *later])
    assert len({new, other}) == 2
    (fault,) = found
    assert (fault.kind, fault.who) == (FaultKind.JUDGE_ACTOR_LOST, "judge-0")
    assert fault.detail.startswith("it gave no sign of life for 4 s and was killed (is stopped (state T)")
    assert fault.detail.endswith(", with 4 calls")
    (stacks,) = tmp_path.glob("stacks-judge-*.txt")
    assert "== judge-0 (pid " in stacks.read_text()
    assert fault.recovery_s is not None and fault.recovery_s < RECOVERY_S
    assert faults.take_metrics()["faults/judge_actor_lost"] == 1.0


def test_an_actor_that_answers_but_ends_none_of_its_calls_is_replaced(image: str, tmp_path: Path) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")

    def drop_calls(worker: Any) -> None:
        worker._calls.clear()  # as a fault of ours would

    async def scenario(pool: RayJudgePool) -> tuple[Judgement, list[Fault]]:
        call = asyncio.create_task(pool.judge(judge_request(image)))
        while not server.requests:
            await asyncio.sleep(0.02)
        await ray.get_actor("judge-0").__ray_call__.remote(drop_calls)
        return await asyncio.wait_for(call, RECOVERY_S), await mended(faults, tmp_path, 1)

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=0.5 if number == 0 else 0.0)) as server:
        judgement, found = with_pool(config_of(server.url), scenario, faults=faults, stall_timeout_s=4.0)
    assert ruled([judgement])
    assert found[0].detail.startswith("it ended none of its calls for watchdog.judge_s=4 s and was killed (in ")


def test_an_actor_that_may_not_serve_where_it_is_is_placed_anew_until_it_may(image: str, tmp_path: Path) -> None:
    """Its new node has no key; calls that wait say so, also in the end."""
    faults = FaultLog(tmp_path / "faults.jsonl")
    refusal: str | None = "KEY is set here but not for 1 of 1 judge actors"
    num_asked = 0

    def admits(_: Any) -> str | None:
        nonlocal num_asked
        num_asked += 1
        return refusal

    async def scenario(pool: RayJudgePool) -> tuple[str | None, Judgement, Judgement, list[Fault]]:
        nonlocal refusal
        pool._actors._admits = admits
        process_of(ray.get_actor("judge-0")).kill()
        ends_at = time.monotonic() + RECOVERY_S
        while num_asked < 2:  # it was moved once
            assert time.monotonic() < ends_at
            await asyncio.sleep(0.02)
        call = asyncio.create_task(pool.judge(judge_request(image)))
        await asyncio.sleep(0.1)
        status, failed = pool.status(), await call
        assert read_faults(tmp_path)[0].detail.endswith("; then KEY is set here but not for 1 of 1 judge actors")
        refusal = None
        found = await mended(faults, tmp_path, 1)
        return status, failed, await pool.judge(judge_request(image)), found

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        status, failed, later, found = with_pool(config_of(server.url, max_outage_s=2.0), scenario, faults=faults)
    told = "judge-0: KEY is set here but not for 1 of 1 judge actors"
    assert status == f"judge: no actor is up ({told}), 1 calls wait for one"
    assert isinstance(failed.outcome, JudgeFailure)
    assert failed.outcome.detail == f"no judge actor came up within judge.max_outage_s=2 ({told})"
    assert ruled([later])
    assert [fault.kind for fault in found] == [FaultKind.JUDGE_ACTOR_LOST]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hanging"])
def test_calls_outlive_the_limiter(image: str, tmp_path: Path, how: signal.Signals) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")

    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], list[Fault]]:
        await pool.judge(judge_request(image))
        process_of(ray.get_actor("judge-limiter")).send_signal(how)
        calls = asyncio.gather(*(pool.judge(judge_request(image, key=str(n))) for n in range(8)))
        return await asyncio.wait_for(calls, RECOVERY_S), await mended(faults, tmp_path, 1)

    with ScriptedServer(lambda _, received: all_ones(received)) as server:
        config = config_of(server.url, requests_per_minute=6000, actor_timeout_s=4.0, deadline_s=60.0)
        judgements, found = with_pool(config, scenario, faults=faults)
    assert ruled(judgements)
    assert {(fault.kind, fault.who) for fault in found} == {(FaultKind.JUDGE_ACTOR_LOST, "judge-limiter")}


def test_an_endpoint_that_moved_is_asked_at_its_new_address_by_actors_that_come_up_later_too(
    image: str, tmp_path: Path
) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        before = await pool.judge(judge_request(image))
        pool.set_url(0, new.url)
        after = await pool.judge(judge_request(image))
        process_of(ray.get_actor("judge-0")).kill()
        await mended(faults, tmp_path, 1)
        later = await pool.judge(judge_request(image))
        assert await pool._silence._answers(0)
        return [before, after, later]

    with ScriptedServer(lambda *_: reply(GOOD)) as old, ScriptedServer(lambda *_: reply(GOOD)) as new:
        assert ruled(with_pool(config_of(old.url), scenario, faults=faults))
    asked = [[request.method for request in server.requests] for server in (old, new)]
    assert asked == [["POST"], ["POST", "POST", "GET"]]


def test_a_second_pool_of_a_job_names_its_actors_apart(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        other = RayJudgePool(config)
        try:
            await other.start()
            ray.get_actor("judge-0.2")
            return await asyncio.gather(pool.judge(judge_request(image)), other.judge(judge_request(image)))
        finally:
            other.close()

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        config = config_of(server.url)
        assert ruled(with_pool(config, scenario))


def test_depths_tell_who_has_a_slot_and_who_waits(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[JudgeDepths, JudgeDepths]:
        calls = asyncio.gather(*(pool.judge(judge_request(image, key=str(n))) for n in range(7)))
        while len(server.requests) < 3:
            await asyncio.sleep(0.02)
        busy = pool.depths()
        await calls
        return busy, pool.depths()

    with ScriptedServer(lambda *_: reply(GOOD, delay_s=0.5)) as server:
        busy, idle = with_pool(config_of(server.url, num_actors=2, concurrency=3), scenario)
    assert busy == JudgeDepths(waiting=4, in_flight=3)
    assert idle == JudgeDepths(waiting=0, in_flight=0)


def test_a_pool_for_which_no_node_has_room_says_so(image: str) -> None:
    config = config_of("http://127.0.0.1:1/v1", resources={"judge_nodes": 1.0}, start_timeout_s=1.0)
    with pytest.raises(ResourceError, match=r"judge\.start_timeout_s=1.*judge\.resources=\{'judge_nodes': 1\.0\}"):
        with_pool(config, lambda _: asyncio.sleep(0))
