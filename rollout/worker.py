"""An engine behind asynchronous methods, as an actor offers them. A plain class; `rollout.pool` puts it into Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import ray

from mrpo.orphans import die_with_parent
from mrpo.processes import descendants_of, kill_and_wait
from mrpo.stacks import answer_stack_requests
from mrpo.types import Completion, RolloutRequest, ScoreSample
from rollout.engine_thread import EngineThread
from rollout.spec import EngineSpec, engine_environment

if TYPE_CHECKING:
    from rollout.engine import Engine

logger = logging.getLogger(__name__)

CONTROL = "control"  # Ray's concurrency group of calls that are answered however many streams are open
CORE_LOOK_S = 1.0  # between two looks at an engine's core
CLOSE_TIMEOUT_S = 3.0  # of an orderly end; processes left after it are killed


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """Where a started engine runs."""

    name: str
    node_id: str  # Ray's
    pid: int
    processes: tuple[tuple[int, float], ...]  # pid and start (epoch seconds) of all that end with it, itself first
    start_s: float  # seconds the start took so far


class RolloutWorker:
    """One engine. Starting takes many seconds and happens in the background: await `ready`."""

    def __init__(self, spec: EngineSpec) -> None:
        die_with_parent()  # of Ray's node manager: nothing of an engine outlives its node
        answer_stack_requests()
        self._spec = spec
        self._created_s = time.monotonic()
        os.environ.update(engine_environment(spec))
        if spec.log_file is not None:
            _redirect_output(spec.log_file)
        if spec.cores:
            os.sched_setaffinity(0, spec.cores)  # the engine's thread inherits it
        self._thread = EngineThread(partial(_build_engine, spec))
        self._num_submitted = 0
        self._closing = False

    def __repr__(self) -> str:
        """The name under which Ray's dashboard and logs show it."""
        return self._spec.actor_name or self._spec.name

    @ray.method(concurrency_group=CONTROL)
    async def placed(self) -> WorkerInfo:
        """Where this is; known while the engine still starts."""
        this = psutil.Process()
        return WorkerInfo(
            name=self._spec.actor_name or self._spec.name,
            node_id=ray.get_runtime_context().get_node_id(),
            pid=this.pid,
            processes=tuple((item.pid, item.create_time()) for item in (this, *this.children(recursive=True))),
            start_s=time.monotonic() - self._created_s,
        )

    @ray.method(concurrency_group=CONTROL)
    async def ready(self) -> WorkerInfo:
        """Wait for the engine to be up; raises what kept it from it."""
        await asyncio.wrap_future(self._thread.started)
        return await self.placed()

    @ray.method(concurrency_group=CONTROL)
    async def watch(self) -> None:
        """Never answers: who asked learns from Ray when this process is gone. It ends with the engine's core."""
        # vLLM notices that its core is gone, and says so at the next call only: there is none while the learner works.
        while self._closing or self._thread.engine is None or not self._thread.engine.core_is_lost:
            await asyncio.sleep(CORE_LOOK_S)
        logger.error("%r: vLLM's core process is gone, and this process ends with it", self)
        kill_and_wait(descendants_of([psutil.Process()]), 0.0)
        os._exit(1)

    @ray.method(concurrency_group=CONTROL)
    async def progress(self) -> int:
        """A count that goes up while the engine works; answered also while its thread is busy, or stuck."""
        return self._thread.num_steps + self._num_submitted

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncGenerator[list[Completion]]:
        """Stream completions as they end, those of one step together. Leaving the stream aborts the rest."""
        async with contextlib.aclosing(
            self._stream(requests, lambda engine, request, put: engine.sample(request, put))
        ) as stream:
            async for batch in stream:
                yield batch

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """Raw log-probs of given completion tokens, per sample [T] nats, in the order given."""
        scores: dict[int, list[float]] = {}

        def submit(engine: Engine, item: tuple[int, ScoreSample], put: Callable[[Any], None]) -> str:
            index, sample = item
            return engine.score(sample, lambda logprobs: put((index, logprobs)))

        async with contextlib.aclosing(self._stream(list(enumerate(samples)), submit)) as stream:
            async for batch in stream:
                scores.update(batch)
        return [scores[index] for index in range(len(samples))]

    async def sleep(self) -> None:
        """See `Engine.sleep`."""
        await self._call(lambda engine: engine.sleep())

    async def wake_up(self) -> None:
        """See `Engine.wake_up`."""
        await self._call(lambda engine: engine.wake_up())

    async def set_policy_version(self, version: int) -> bool:
        """See `Engine.set_policy_version`; True, once it is done."""
        await self._call(lambda engine: engine.set_policy_version(version))
        return True

    @ray.method(concurrency_group=CONTROL)
    async def updating(self) -> bool:
        """Whether the engine is inside a weight update; answered by the engine's thread, and so a sign of its life."""
        inside: bool = await self._call(lambda engine: engine.updating)
        return inside

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See `Engine.init_weight_transfer_engine`."""
        await self._call(lambda engine: engine.init_weight_transfer_engine(init_info))

    async def start_weight_update(self) -> None:
        """See `Engine.start_weight_update`."""
        await self._call(lambda engine: engine.start_weight_update())

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """See `Engine.update_weights`."""
        await self._call(lambda engine: engine.update_weights(update_info))

    async def finish_weight_update(self) -> None:
        """See `Engine.finish_weight_update`."""
        await self._call(lambda engine: engine.finish_weight_update())

    async def load_adapter(self, files: dict[str, bytes]) -> None:
        """See `Engine.load_adapter`."""
        await self._call(lambda engine: engine.load_adapter(files))

    async def start_trace(self) -> None:
        """See `Engine.start_trace`."""
        await self._call(lambda engine: engine.start_trace())

    async def stop_trace(self) -> list[bytes]:
        """See `Engine.stop_trace`."""
        traces: list[bytes] = await self._call(lambda engine: engine.stop_trace())
        return traces

    @ray.method(concurrency_group=CONTROL)
    async def close(self) -> None:
        """End the engine and every process it started, within a few seconds."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._call(lambda engine: engine.close()), CLOSE_TIMEOUT_S)
        self._thread.stop()
        kill_and_wait(descendants_of([psutil.Process()]), 0.0)

    async def _call(self, function: Callable[[Engine], Any]) -> Any:
        return await asyncio.wrap_future(self._thread.call(function))

    async def _stream(
        self, items: Sequence[Any], submit: Callable[[Engine, Any, Callable[[Any], None]], str]
    ) -> AsyncGenerator[list[Any]]:
        """Submit every item and yield what comes of them, in batches of what is there."""
        loop = asyncio.get_running_loop()
        results: asyncio.Queue[Any] = asyncio.Queue()
        request_ids: list[str] = []

        def put(result: Any) -> None:
            loop.call_soon_threadsafe(results.put_nowait, result)

        def submit_all(engine: Engine) -> None:
            for item in items:
                request_ids.append(submit(engine, item, put))
                self._num_submitted += 1  # images are read and processed here

        remaining = len(items)
        try:
            with self._thread.on_failure(put):
                await self._call(submit_all)
                while remaining:
                    batch = [await results.get()]
                    while not results.empty():
                        batch.append(results.get_nowait())
                    for result in batch:
                        if isinstance(result, BaseException):
                            raise result
                    remaining -= len(batch)
                    yield batch
        finally:
            if remaining:
                self._thread.call(lambda engine: engine.abort(request_ids))


def _build_engine(spec: EngineSpec) -> Engine:
    # Imported on the engine's thread: the actor answers while vLLM loads.
    from rollout.engine import Engine

    return Engine(spec)


def _redirect_output(path: str) -> None:
    """Send everything this process and its children print to a file, native libraries included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
