"""The engines of a run as Ray actors, behind `mrpo.protocols.RolloutPool`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mrpo.choices import Device
from mrpo.errors import EngineError, MRPOError
from mrpo.host import host_id
from mrpo.placement import Seat
from mrpo.types import Completion, RolloutRequest, ScoreSample
from rollout.request import refuse_mixed, split_over_engines
from rollout.spec import EngineSpec
from rollout.worker import CLOSE_TIMEOUT_S, RolloutWorker, WorkerInfo

logger = logging.getLogger(__name__)

MAX_CALLS_IN_FLIGHT = 64  # of one actor; streams of completions and control calls


class VllmRolloutPool:
    """Make one with `start`. Splits requests over engines and merges their streams."""

    def __init__(self, specs: Sequence[EngineSpec], handles: Sequence[Any], infos: Sequence[WorkerInfo]) -> None:
        self._specs = list(specs)
        self._handles = list(handles)
        self._infos = list(infos)

    @classmethod
    async def start(cls, specs: Sequence[EngineSpec], seats: Sequence[Seat] = ()) -> VllmRolloutPool:
        """Start all engines at the same time and wait for them.

        Args:
            specs: one an engine.
            seats: where each is to live; empty: where Ray finds room.

        Raises:
            EngineError: an engine did not come up, or not within `rollout.start_timeout_s`.
        """
        handles = [_make_actor(spec, seat) for spec, seat in zip(specs, seats or [None] * len(specs), strict=True)]
        timeout_s = specs[0].rollout.start_timeout_s
        waits = [_answer(spec, handle.ready.remote()) for spec, handle in zip(specs, handles, strict=True)]
        try:
            infos = await asyncio.wait_for(asyncio.gather(*waits), timeout_s)
        except TimeoutError:
            await _end(handles, [])
            raise EngineError(
                f"{', '.join(spec.name for spec in specs)} not up after rollout.start_timeout_s={timeout_s:g}; "
                f"see {specs[0].log_file or 'the output above'}, or raise it"
            ) from None
        except BaseException:
            await _end(handles, [])
            raise
        for info in infos:
            logger.info("%s is up after %.1f s", info.name, info.start_s)
        return cls(specs, handles, infos)

    @property
    def handles(self) -> list[Any]:
        """Actor handles; the learner calls the four weight-transfer methods on them by name."""
        return list(self._handles)

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Completion]:
        """Stream completions as they end, in any order; every request yields exactly one.

        Raises:
            UserError: greedy and sampled requests in one call, or a request that cannot be run; nothing is yielded
                for the others after it.
            EngineError: an engine died, or nothing ended for `rollout.stall_timeout_s` while something was due.
        """
        self._refuse_closed()
        refuse_mixed(requests)
        stall_timeout_s = self._specs[0].rollout.stall_timeout_s
        results: asyncio.Queue[tuple[int, list[Completion] | BaseException]] = asyncio.Queue()
        shares = split_over_engines(requests, len(self._handles))
        due = [len(share) for share in shares]
        tasks = [asyncio.create_task(self._stream(i, share, results)) for i, share in enumerate(shares) if share]
        try:
            while sum(due):
                try:
                    index, batch = await asyncio.wait_for(results.get(), stall_timeout_s)
                except TimeoutError:
                    raise self._stalled(due, stall_timeout_s) from None
                if isinstance(batch, BaseException):
                    raise batch
                due[index] -= len(batch)
                for completion in batch:
                    yield completion
        finally:
            for task in tasks:
                task.cancel()

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """The engines' raw log-probs of given completion tokens, per sample [T] nats.

        Raises:
            UserError: a prompt that is not what the processor makes of its image.
            EngineError: an engine died.
        """
        self._refuse_closed()
        num_engines = len(self._handles)
        shares = await asyncio.gather(
            *(
                _answer(spec, handle.score.remote(samples[index::num_engines]))
                for index, (spec, handle) in enumerate(zip(self._specs, self._handles, strict=True))
            )
        )
        scores: list[list[float]] = [[]] * len(samples)
        for index, share in enumerate(shares):
            scores[index::num_engines] = share
        return scores

    async def sleep(self) -> None:
        """Give shared GPUs to the learner; engines with GPUs of their own, or none, stay as they are."""
        await self._all_that_sleep("sleep")

    async def wake_up(self) -> None:
        """Take the weights back onto shared GPUs, to be updated; `set_policy_version` completes it."""
        await self._all_that_sleep("wake_up")

    async def set_policy_version(self, version: int) -> None:
        """Call after a finished weight update: drops what was cached under the old weights and stamps completions."""
        await self._all("set_policy_version", version)

    async def close(self) -> None:
        """End all engines and their processes within a few seconds. Safe to call again."""
        handles, self._handles = self._handles, []
        await _end(handles, self._infos)

    async def _all_that_sleep(self, method: str) -> None:
        if all(spec.sleeps for spec in self._specs):
            await self._all(method)

    async def _all(self, method: str, *arguments: Any) -> None:
        calls = [getattr(handle, method).remote(*arguments) for handle in self._handles]
        await asyncio.gather(*(_answer(spec, call) for spec, call in zip(self._specs, calls, strict=True)))

    async def _stream(
        self,
        index: int,
        share: list[RolloutRequest],
        results: asyncio.Queue[tuple[int, list[Completion] | BaseException]],
    ) -> None:
        spec = self._specs[index]
        stream = self._handles[index].generate.options(num_returns="streaming").remote(share)
        try:
            async for reference in stream:
                results.put_nowait((index, await reference))
        except RayError as error:
            explained = _explain(spec, error)
            explained.__cause__ = error
            results.put_nowait((index, explained))

    def _refuse_closed(self) -> None:
        if not self._handles:
            raise EngineError("the rollout pool is closed; start another")

    def _stalled(self, due: Sequence[int], stall_timeout_s: float) -> EngineError:
        waiting = ", ".join(f"{spec.name} ({n} due)" for spec, n in zip(self._specs, due, strict=True) if n)
        logs = ", ".join(spec.log_file for spec in self._specs if spec.log_file) or "the output above"
        return EngineError(
            f"no completion for rollout.stall_timeout_s={stall_timeout_s:g} s from {waiting}; see {logs}"
        )


def _make_actor(spec: EngineSpec, seat: Seat | None) -> Any:
    on_gpu = spec.device == Device.GPU
    options: dict[str, Any] = {
        # On CPU the cores are shared by design (`rollout.cpu_cores`); claiming them could keep an actor waiting.
        "num_cpus": 1 if on_gpu else 0,
        "num_gpus": spec.rollout.tensor_parallel if on_gpu else 0,
        "max_concurrency": MAX_CALLS_IN_FLIGHT,
    }
    if seat is not None:
        options["num_gpus"] = seat.num_gpus
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(seat.group, seat.bundle)
        spec = replace(spec, gpu_ids=seat.gpu_ids)
    return ray.remote(RolloutWorker).options(**options).remote(spec)


async def _answer(spec: EngineSpec, reference: Any) -> Any:
    """The actor's answer, or its error in our own words."""
    try:
        return await reference
    except RayError as error:
        raise _explain(spec, error) from error


def _explain(spec: EngineSpec, error: RayError) -> MRPOError:
    where = f"; see {spec.log_file}" if spec.log_file else ""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, MRPOError):
            return error.cause
        reason = " ".join(str(error.cause).split())
        return EngineError(f"{spec.name} failed: {type(error.cause).__name__}: {reason}{where}")
    died = "died" if isinstance(error, RayActorError) else "did not answer"
    return EngineError(f"{spec.name} {died}: {str(error).splitlines()[0]}{where}")


async def _end(handles: Sequence[Any], infos: Sequence[WorkerInfo]) -> None:
    local = [info.pid for info in infos if info.host == host_id()]
    # Listed before the actors go: afterwards nobody knows whose children they were.
    children = [child for pid in local for child in _children(pid)]
    with contextlib.suppress(TimeoutError):
        closing: list[Coroutine[Any, Any, Any]] = [_quiet(handle.close.remote()) for handle in handles]
        await asyncio.wait_for(asyncio.gather(*closing), CLOSE_TIMEOUT_S + 1)
    for handle in handles:
        ray.kill(handle)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


async def _quiet(reference: Any) -> None:
    with contextlib.suppress(RayError, MRPOError):
        await reference


def _children(pid: int) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return children
    except psutil.NoSuchProcess:
        return []
