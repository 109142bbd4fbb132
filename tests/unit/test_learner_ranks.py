"""Which failures of a rank end its group, and who is named; ranks are futures that a test settles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from learner import ranks
from learner.ranks import Deadline, Ranks
from mrpo.errors import LearnerLostError, LearnerStuckError, MRPOError, NonFiniteError, ResourceError
from mrpo.stacks import ActorProcess, Stacks

GLOO = RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
CUDA = RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with TORCH_USE_CUDA_DSA")
NOTICE_S = 0.2
PATIENCE_S = 5.0


class DistBackendError(RuntimeError):
    """As torch.distributed names what NCCL raises."""


class FakeRank:
    """Every call is a future in `calls`."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[object]] = []
        self.is_killed = False

    def __getattr__(self, method: str) -> FakeRank:
        return self

    def options(self, **_: object) -> FakeRank:
        return self

    def remote(self, *_: object) -> asyncio.Future[object]:
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]

    def kill(self) -> None:
        self.is_killed = True
        for call in self.calls:
            if not call.done():
                call.set_exception(ActorDiedError())

    def fail(self, cause: Exception, traceback: str = "Traceback: step.py, line 1") -> None:
        self.calls[-1].set_exception(RayTaskError("step", traceback, cause).as_instanceof_cause())


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(process: ActorProcess) -> None:
        await asyncio.sleep(0.02)

    async def stacks(processes: list[ActorProcess], **_: object) -> dict[str, Stacks]:
        await asyncio.sleep(0.02)
        return {process.name: Stacks(text="", state="is stopped (state T)") for process in processes}

    monkeypatch.setattr(ranks.ray, "kill", lambda handle: handle.kill())
    monkeypatch.setattr(ranks, "kill_process", killed)
    monkeypatch.setattr(ranks, "record_stacks", stacks)
    monkeypatch.setattr(ranks, "NOTICE_S", NOTICE_S)


def group(number: int = 2) -> tuple[Ranks, list[FakeRank]]:
    found, fakes = Ranks(), [FakeRank() for _ in range(number)]
    found.handles = list(fakes)
    found._names = [f"learner-{rank}" for rank in range(number)]
    found._processes = [ActorProcess(name=name, node_id="n", pid=1) for name in found._names]
    return found, fakes


def outcome(settle: Callable[[list[FakeRank]], Awaitable[None]]) -> tuple[Exception, list[FakeRank], float]:
    """What a step of two ranks raises, and how many seconds after `settle` had its way."""

    async def body() -> tuple[Exception, list[FakeRank], float]:
        found, fakes = group()
        call = asyncio.create_task(found.call("step"))
        await asyncio.sleep(0)
        await settle(fakes)
        started = asyncio.get_running_loop().time()
        (error,) = await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), PATIENCE_S)
        assert isinstance(error, Exception)
        return error, fakes, asyncio.get_running_loop().time() - started

    return asyncio.run(body())


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (CUDA, "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
        (MemoryError(), "MemoryError: "),
        (KeyError("pixel_values"), "KeyError: 'pixel_values'"),
    ],
)
def test_what_a_rank_does_not_raise_on_purpose_ends_the_group_at_once(
    cause: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def settle(fakes: list[FakeRank]) -> None:
        fakes[1].fail(cause, "Traceback: policy.py, line 63")  # its peer waits in a collective for ever

    with caplog.at_level(logging.ERROR):
        error, fakes, seconds = outcome(settle)
    assert isinstance(error, LearnerLostError) and not isinstance(error, LearnerStuckError)
    assert (error.who, str(error)) == ("learner-1", f"learner-1 failed in step: {told}".strip())
    assert all(fake.is_killed for fake in fakes)
    assert seconds < NOTICE_S, "nobody else is waited for"
    assert "learner-1 failed in step" in caplog.text and "policy.py, line 63" in caplog.text


@pytest.mark.parametrize("error", [NonFiniteError("the loss is nan"), ResourceError("the disk is full")])
def test_an_error_of_ours_leaves_as_itself_and_the_group_stays(error: MRPOError) -> None:
    async def settle(fakes: list[FakeRank]) -> None:
        for fake in fakes:
            fake.fail(error)

    raised, fakes, _ = outcome(settle)
    assert type(raised) is type(error) and str(raised) == str(error)
    assert not any(fake.is_killed for fake in fakes)


def test_an_error_of_ours_whose_traceback_speaks_of_nccl_is_no_loss() -> None:
    async def settle(fakes: list[FakeRank]) -> None:
        fakes[0].fail(ResourceError("no place to write"), "Traceback: NCCLWeightTransferEngine.send, gpu_senders.py")

    raised, _, _ = outcome(settle)
    assert type(raised) is ResourceError


@pytest.mark.parametrize("cause", [GLOO, DistBackendError("a peer left"), ConnectionResetError("Connection reset")])
def test_a_lost_connection_waits_for_who_was_lost(cause: Exception) -> None:
    async def settle(fakes: list[FakeRank]) -> None:
        fakes[0].fail(cause)
        await asyncio.sleep(NOTICE_S / 4)
        fakes[1].calls[-1].set_exception(ActorDiedError())

    error, _, _ = outcome(settle)
    assert isinstance(error, LearnerLostError) and error.who == "learner-1"
    assert "died during step" in str(error)


def test_a_lost_connection_waits_for_the_rank_that_failed() -> None:
    async def settle(fakes: list[FakeRank]) -> None:
        fakes[0].fail(GLOO)
        await asyncio.sleep(NOTICE_S / 4)
        fakes[1].fail(CUDA)

    error, _, _ = outcome(settle)
    assert isinstance(error, LearnerLostError) and error.who == "learner-1"
    assert "uncorrectable ECC" in str(error)


def test_a_lost_connection_that_nobody_explains_ends_the_group_within_the_bound() -> None:
    async def settle(fakes: list[FakeRank]) -> None:
        fakes[0].fail(GLOO, "Traceback: step.py")

    error, fakes, seconds = outcome(settle)
    assert isinstance(error, LearnerLostError)
    assert (error.who, str(error)) == ("learner", f"learner broke off step: RuntimeError: {GLOO}")
    assert NOTICE_S <= seconds < NOTICE_S + 1.0
    assert all(fake.is_killed for fake in fakes)


def test_two_calls_that_fail_together_are_both_told_of_the_loss() -> None:
    """The second one finds the ranks gone, and returns only when they are."""

    async def body() -> None:
        found, fakes = group()
        calls = [asyncio.create_task(found.call(method)) for method in ("score", "publish")]
        await asyncio.sleep(0)
        fakes[1].kill()
        first, second = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE_S)
        assert isinstance(first, LearnerLostError) and isinstance(second, LearnerLostError)
        assert (first.who, second.who) == ("learner-1", "learner-1")
        assert str(first).startswith("learner-1 died during score: ")
        assert str(second) == f"{first}; there are no ranks to publish"
        with pytest.raises(LearnerLostError, match="there are no ranks to step"):
            await found.call("step")

    asyncio.run(body())


def test_a_call_that_is_over_its_deadline_while_another_ends_the_ranks() -> None:
    async def body() -> None:
        found, fakes = group()
        slow = asyncio.create_task(found.call("step", deadline=Deadline("watchdog.learn_s", 0.05)))
        other = asyncio.create_task(found.call("score"))
        await asyncio.sleep(0.06)  # the stacks of those that are slow are being read
        fakes[0].fail(CUDA)
        errors = await asyncio.wait_for(asyncio.gather(slow, other, return_exceptions=True), PATIENCE_S)
        assert all(isinstance(error, LearnerLostError) for error in errors), errors
        assert [isinstance(error, LearnerStuckError) for error in errors].count(True) <= 1

    asyncio.run(body())


@pytest.mark.parametrize(
    ("cause", "expected", "told"),
    [
        (ResourceError("the disk is full"), ResourceError, "the disk is full"),
        (MemoryError(), ResourceError, "learner-0 failed in write: MemoryError:; its traceback is in the log"),
        (ActorDiedError(), LearnerLostError, "learner-0 died during write: "),
    ],
)
def test_a_write_that_fails_costs_a_checkpoint_and_a_rank_that_dies_is_lost(
    cause: Exception, expected: type[Exception], told: str
) -> None:
    async def body() -> Any:
        found, fakes = group()
        write = asyncio.create_task(found.call_writer("write", "folder", deadline=Deadline("watchdog.save_s", 60.0)))
        await asyncio.sleep(0)
        if isinstance(cause, ActorDiedError):
            fakes[0].kill()
        else:
            fakes[0].fail(cause)
        with pytest.raises(expected, match=told) as caught:
            await write
        return caught.value

    assert type(asyncio.run(body())) is expected
