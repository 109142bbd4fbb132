"""Circuits of a pool: who may go, who tries, who waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from judge.circuits import Admission, Circuits
from mrpo.choices import OutagePolicy
from mrpo.config import BreakerConfig, JudgeConfig
from mrpo.faults import FaultKind, FaultLog, read_faults

COOL_DOWN_S = 0.4


def circuits(
    number: int = 1, lines: list[str] | None = None, **changes: Any
) -> tuple[Circuits, list[tuple[int, bool]]]:
    told: list[tuple[int, bool]] = []
    config = JudgeConfig(breaker=BreakerConfig(cool_down_s=COOL_DOWN_S), **changes)
    names = [f"m{index}" for index in range(number)]
    on_event = None if lines is None else lines.append
    return Circuits(names, config, tell=lambda *item: told.append(item), on_event=on_event), told


@pytest.mark.asyncio
async def test_an_open_circuit_is_tried_by_one_call_at_a_time_while_the_others_go_elsewhere() -> None:
    found, told = circuits(2)
    found.opened(0, "gone")
    assert await found.admit() == Admission()  # not due yet
    await asyncio.sleep(COOL_DOWN_S / 8 + 0.02)
    assert await found.admit() == Admission(trial=0)
    assert await found.admit() == Admission()  # it is being tried
    found.tried(0, passed=False)
    assert await found.admit() == Admission()
    await asyncio.sleep(COOL_DOWN_S / 4 + 0.02)
    assert await found.admit() == Admission(trial=0)
    found.tried(0, passed=True)
    assert told == [(0, True), (0, False)]
    assert found.open == []


@pytest.mark.asyncio
async def test_a_trial_of_which_nothing_was_learned_is_made_again_at_once() -> None:
    found, _ = circuits(2)
    found.opened(1, "gone")
    await asyncio.sleep(COOL_DOWN_S / 8 + 0.02)
    assert await found.admit() == Admission(trial=1)
    found.tried(1, passed=None)
    assert await found.admit() == Admission(trial=1)


@pytest.mark.asyncio
@pytest.mark.parametrize("is_event_first", [True, False])
async def test_a_pause_that_a_trial_is_asked_for_is_kept_in_either_order_of_news(is_event_first: bool) -> None:
    found, _ = circuits(2)
    found.opened(0, "gone")
    await asyncio.sleep(COOL_DOWN_S / 8 + 0.02)
    assert await found.admit() == Admission(trial=0)
    if is_event_first:
        found.opened(0, "HTTP 429", for_s=0.6)
        found.tried(0, passed=False)
    else:
        found.tried(0, passed=False)
        found.opened(0, "HTTP 429", for_s=0.6)
    await asyncio.sleep(0.3)  # its own next trial would be due after 0.1 s
    assert await found.admit() == Admission()
    await asyncio.sleep(0.35)
    assert await found.admit() == Admission(trial=0)


@pytest.mark.asyncio
async def test_calls_wait_while_nobody_may_be_asked_and_all_go_when_a_trial_passes() -> None:
    lines: list[str] = []
    found, _ = circuits(lines=lines)
    found.opened(0, "gone")
    calls = [asyncio.create_task(found.admit()) for _ in range(20)]
    await asyncio.sleep(COOL_DOWN_S / 8 + 0.05)
    admitted = [call.result() for call in calls if call.done()]
    assert admitted == [Admission(trial=0)]
    assert found.num_waiting == 19
    found.tried(0, passed=True)
    assert await asyncio.gather(*calls) == [Admission(trial=0)] + [Admission()] * 19
    assert [line.split(":")[0].split(" after")[0] for line in lines] == ["judge down", "judge up again"]
    assert found.take_outage_s() > 0.0
    assert found.take_outage_s() == 0.0


@pytest.mark.asyncio
async def test_a_waiting_call_that_is_given_up_hands_its_trial_on() -> None:
    found, _ = circuits()
    found.opened(0, "gone")
    first, second = asyncio.create_task(found.admit()), asyncio.create_task(found.admit())
    await asyncio.sleep(0)
    turn = found._next_turn()
    assert turn is not None
    turn.set_result(found._try(0))
    first.cancel()  # in the moment in which the trial was handed to it
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 5.0) == Admission(trial=0)


@pytest.mark.asyncio
async def test_whoever_writes_an_outage_down_may_fail() -> None:
    def on_event(line: str) -> None:
        raise OSError("no space left on device")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    found = Circuits(
        ["m"], JudgeConfig(breaker=BreakerConfig(cool_down_s=COOL_DOWN_S)), tell=lambda *_: None, on_event=on_event
    )
    found.opened(0, "gone")
    trial = await asyncio.wait_for(found.admit(), 5.0)
    assert trial == Admission(trial=0)
    found.tried(0, passed=True)
    assert await asyncio.wait_for(found.admit(), 5.0) == Admission()


@pytest.mark.asyncio
async def test_by_policy_or_after_the_longest_wait_calls_are_refused() -> None:
    found, _ = circuits(on_outage=OutagePolicy.FAIL)
    found.opened(0, "gone")
    assert (await found.admit()).refusal == "no endpoint of the judge answers (m0: gone)"
    waiting, _ = circuits(max_outage_s=0.2, on_outage=OutagePolicy.WAIT)
    waiting.opened(0, "gone")
    waiting._circuits[0].due_s += 60.0  # no trial
    assert "judge.max_outage_s=0.2" in str((await asyncio.wait_for(waiting.admit(), 5.0)).refusal)
    assert "judge.max_outage_s=0.2" in str((await waiting.admit()).refusal)


@pytest.mark.asyncio
async def test_closing_refuses_those_that_wait() -> None:
    found, _ = circuits()
    found.opened(0, "gone")
    call = asyncio.create_task(found.admit())
    await asyncio.sleep(0)
    found.close()
    assert (await call).refusal == "the judge pool was closed"


@pytest.mark.asyncio
async def test_an_outage_has_a_line_for_as_long_as_it_lasts_and_is_a_fault_on_record(tmp_path: Path) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")
    config = JudgeConfig(breaker=BreakerConfig(cool_down_s=COOL_DOWN_S))
    found = Circuits(["m0"], config, tell=lambda *_: None, on_event=lambda _: None, faults=faults)
    assert found.status() is None
    found.opened(0, "connection refused", for_s=30.0)
    waiting = asyncio.create_task(found.admit())
    await asyncio.sleep(0.05)
    assert found.status() == "judge: out for 0 s (connection refused), 1 calls wait, asking again in 30 s"
    assert faults.take_metrics() == {"faults/judge_outage": 1.0}
    found._circuits[0].due_s = 0.0
    found._changed.set()
    assert await waiting == Admission(trial=0)
    assert str(found.status()).endswith("0 calls wait, asking again …")
    found.tried(0, passed=True)
    await asyncio.sleep(0.01)
    assert found.status() is None
    (fault,) = read_faults(tmp_path)
    assert (fault.kind, fault.who, fault.detail) == (FaultKind.JUDGE_OUTAGE, "judge", "connection refused")
    assert fault.recovery_s is not None
