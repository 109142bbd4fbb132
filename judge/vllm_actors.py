"""The vLLM servers of a run's own judge: a Ray actor each, on the GPUs of its seat, and their addresses."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from judge.named_actor import named_actor
from judge.process import process_place
from judge.pulse import Pulse
from judge.vllm_server import Command, VllmServer, VllmSpec
from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import JudgeUnavailableError, MRPOError
from mrpo.faults import FaultKind, FaultLog
from mrpo.placement import Seat

logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
POLL_S = 1.0
LOOK_EVERY_S = 30.0  # at a server that is there, whether it answers
HANG_S = 300.0  # for which one may give no answer, above what its queue may make a token wait
PORT_ATTEMPTS = 3  # with the port that a server had, which may be held by the one before it; then any will do
CLOSE_TIMEOUT_S = 40.0
SILENT_S = 60.0  # for which an actor may be; it does nothing but wait
MAX_PAUSE_S = 60.0  # between attempts to make one anew


class VllmActor:
    """Keeps one server running on its node; plain, so that `ray.remote` is applied in one place."""

    def __init__(self, spec: VllmSpec, *, local: bool, command: Command | None = None, port: int | None = None) -> None:
        """Nothing is started yet.

        Args:
            spec: of the server.
            local: the cluster is this machine, and nobody else need reach the server.
            command: as `VllmServer`.
            port: as `VllmServer`.
        """
        host = LOOPBACK if local else ray.util.get_node_ip_address()
        self.server = VllmServer(spec, host=host, command=command, port=port)
        self._closing = threading.Event()
        self._closed = threading.Lock()

    def ping(self) -> tuple[str, int]:
        """Answering at all says that this process lives; which one it is."""
        return process_place()

    def start(self) -> str:
        """The base URL of the healthy server; what is left of one before it is ended.

        Raises:
            JudgeUnavailableError: it did not come up.
        """
        with self._closed:
            self.server.close()  # one that hangs
            self.server.start(give_up=self._closing.is_set)
        return self.server.url

    def watch(self) -> str:
        """Wait until the server is lost; returns how."""
        log, good_s = self.server.spec.log_file, time.monotonic()
        looked_s = good_s
        while not self._closing.wait(POLL_S):
            if not self.server.is_running:
                return f"its server ended by itself; see {log}"
            if time.monotonic() - looked_s < LOOK_EVERY_S:
                continue
            if self.server.answers(HANG_S):
                good_s = time.monotonic()
            elif self.server.is_running and time.monotonic() - good_s >= HANG_S:
                return f"its server gave no answer for {HANG_S:g} s; see {log}"
            looked_s = time.monotonic()
        return "it was closed"

    def close(self) -> None:
        """End the server; a start under way is given up."""
        self._closing.set()
        with self._closed:
            self.server.close()


class VllmServers:
    """All servers of a run; `start`, `judge_config`, `close`. Ray must be up."""

    def __init__(
        self,
        specs: Sequence[VllmSpec],
        seats: Sequence[Seat],
        *,
        local: bool,
        faults: FaultLog | None = None,
        command: Command | None = None,
    ) -> None:
        """Create the actors.

        Args:
            specs: one a server.
            seats: as many, or none on a CPU.
            local: as `VllmActor`.
            faults: told of servers and actors that are lost and come back.
            command: as `VllmActor`.
        """
        self._specs = list(specs)
        self._places: list[Seat | None] = list(seats) or [None] * len(specs)
        self._local = local
        self._faults = faults or FaultLog(None)
        self._command = command
        made = [self._make(index) for index in range(len(specs))]
        self._actors, self._names = [actor for actor, _ in made], [name for _, name in made]
        self._urls: list[str] = []
        # Told the new base URL of a server that has another one.
        self.on_moved: Callable[[int, str], None] | None = None
        self._keeping: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Wait until every server is healthy.

        Raises:
            JudgeUnavailableError: one did not come up.
        """
        calls = [_answer(spec, actor.start.remote()) for spec, actor in zip(self._specs, self._actors, strict=True)]
        self._urls = await asyncio.gather(*calls)
        self._keeping = [asyncio.create_task(self._keep(index)) for index in range(len(self._specs))]

    def judge_config(self, config: JudgeConfig) -> JudgeConfig:
        """The judge's settings with these servers as endpoints."""
        endpoints = [
            EndpointConfig(url=url, model=spec.served_name) for url, spec in zip(self._urls, self._specs, strict=True)
        ]
        return replace(config, url=None, model=None, endpoints=tuple(endpoints))

    async def close(self) -> None:
        """End servers and actors; safe to call twice."""
        for task in self._keeping:
            task.cancel()
        actors, self._actors = self._actors, []
        ending = [asyncio.ensure_future(_quiet(actor.close.remote())) for actor in actors]
        if ending:
            await asyncio.wait(ending, timeout=CLOSE_TIMEOUT_S)
        for actor in actors:
            ray.kill(actor)  # the supervisor ends a server whose actor is gone

    def _make(self, index: int, port: int | None = None) -> tuple[Any, str]:
        spec, options = self._specs[index], _options(self._places[index])
        return named_actor(
            VllmActor, spec.name, spec, options=options, local=self._local, command=self._command, port=port
        )

    async def _keep(self, index: int) -> None:
        """Start a server that was lost again, with its actor or without; calls go elsewhere or wait meanwhile."""
        while True:
            how, has_actor = await self._lost(index)
            with self._faults.during(FaultKind.JUDGE_ACTOR_LOST, self._names[index], how):
                await self._replace(index, has_actor=has_actor)

    async def _lost(self, index: int) -> tuple[str, bool]:
        """Wait until a server is lost: how, and whether its actor is there still."""
        actor, log_dir = self._actors[index], Path(self._specs[index].log_file).parent
        ended = asyncio.ensure_future(_watched(actor))
        pulse = Pulse(actor, self._names[index], timeout_s=SILENT_S, log_dir=log_dir)
        silent = asyncio.ensure_future(pulse.lost())
        try:
            await asyncio.wait((ended, silent), return_when=asyncio.FIRST_COMPLETED)
            return (silent.result(), False) if silent.done() else ended.result()
        finally:
            ended.cancel()
            silent.cancel()

    async def _replace(self, index: int, *, has_actor: bool) -> None:
        spec, url = self._specs[index], self._urls[index]
        pause_s = POLL_S
        for attempt in itertools.count():
            if attempt or not has_actor:
                port = urlsplit(url).port if attempt < PORT_ATTEMPTS else None
                self._actors[index], self._names[index] = self._make(index, port)
            try:
                found = await _answer(spec, self._actors[index].start.remote())
                break
            except (JudgeUnavailableError, RayError) as error:
                logger.warning("%s is not up again: %s", spec.name, str(error).splitlines()[0])
                ray.kill(self._actors[index])
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        if found != url:
            logger.warning("%s came up at %s, calls go there and no longer to %s", spec.name, found, url)
            self._urls[index] = found
            if self.on_moved is not None:
                self.on_moved(index, found)


def _options(seat: Seat | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 4}  # `close` and `ping` are heard while others wait
    if seat is not None:
        options |= {
            "num_cpus": 1,
            "num_gpus": seat.num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(seat.group, seat.bundle),
        }
    return options


async def _answer(spec: VllmSpec, reference: Any) -> str:
    """The actor's answer, or its error in our own words."""
    try:
        url: str = await reference
        return url
    except RayTaskError as error:
        if isinstance(error.cause, MRPOError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise JudgeUnavailableError(f"{spec.name}: its actor was lost while the server started ({error})") from None


async def _watched(actor: Any) -> tuple[str, bool]:
    """How its server is lost, and whether the actor is there still."""
    try:
        return await actor.watch.remote(), True
    except RayError as error:
        return type(error).__name__, False


async def _quiet(reference: Any) -> None:
    try:
        await reference
    except RayError as error:
        logger.debug("a judge server's actor was gone before it was closed: %s", error)
