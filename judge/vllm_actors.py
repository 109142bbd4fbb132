"""The vLLM servers of a run's own judge: a Ray actor each, on the GPUs of its seat, and their addresses."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from judge.vllm_server import VllmServer, VllmSpec
from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import JudgeUnavailableError, MRPOError
from mrpo.placement import Seat

logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
MAX_RESTARTS = 3  # of a server that ends by itself; then its endpoint stays down
POLL_S = 1.0
CLOSE_TIMEOUT_S = 40.0


class VllmActor:
    """Keeps one server running on its node; plain, so that `ray.remote` is applied in one place."""

    def __init__(self, spec: VllmSpec, *, local: bool) -> None:
        """`local`: the cluster is this machine, and nobody else need reach the server."""
        self.server = VllmServer(spec, host=LOOPBACK if local else ray.util.get_node_ip_address())
        self._closing = threading.Event()
        self._closed = threading.Lock()

    def start(self) -> str:
        """The base URL of the healthy server.

        Raises:
            JudgeUnavailableError: it did not come up.
        """
        self.server.start(give_up=self._closing.is_set)
        threading.Thread(target=self._keep_up, daemon=True).start()
        return self.server.url

    def close(self) -> None:
        """End the server; a start under way is given up."""
        self._closing.set()
        with self._closed:
            self.server.close()

    def _keep_up(self) -> None:
        """Start the server again, at its address, when it ends by itself; calls go elsewhere or wait meanwhile."""
        for _ in range(MAX_RESTARTS):
            while self.server.is_running:
                if self._closing.wait(POLL_S):
                    return
            with self._closed:
                if self._closing.is_set():
                    return
                logger.warning("%s ended by itself; it is started again", self.server.spec.name)
                try:
                    self.server.start(give_up=self._closing.is_set)
                except JudgeUnavailableError:
                    logger.exception("%s does not come up again", self.server.spec.name)


class VllmServers:
    """All servers of a run; `start`, `judge_config`, `close`. Ray must be up."""

    def __init__(self, specs: Sequence[VllmSpec], seats: Sequence[Seat], *, local: bool) -> None:
        """Create the actors.

        Args:
            specs: one a server.
            seats: as many, or none on a CPU.
            local: as `VllmActor`.
        """
        self._specs = list(specs)
        places: list[Seat | None] = list(seats) or [None] * len(specs)
        self._actors = [_make_actor(spec, seat, local) for spec, seat in zip(specs, places, strict=True)]
        self._urls: list[str] = []

    async def start(self) -> None:
        """Wait until every server is healthy.

        Raises:
            JudgeUnavailableError: one did not come up.
        """
        calls = [_answer(spec, actor.start.remote()) for spec, actor in zip(self._specs, self._actors, strict=True)]
        self._urls = await asyncio.gather(*calls)

    def judge_config(self, config: JudgeConfig) -> JudgeConfig:
        """The judge's settings with these servers as endpoints."""
        endpoints = [
            EndpointConfig(url=url, model=spec.served_name) for url, spec in zip(self._urls, self._specs, strict=True)
        ]
        return replace(config, url=None, model=None, endpoints=tuple(endpoints))

    async def close(self) -> None:
        """End servers and actors; safe to call twice."""
        actors, self._actors = self._actors, []
        ending = [asyncio.ensure_future(_quiet(actor.close.remote())) for actor in actors]
        if ending:
            await asyncio.wait(ending, timeout=CLOSE_TIMEOUT_S)
        for actor in actors:
            ray.kill(actor)  # the supervisor ends a server whose actor is gone


def _make_actor(spec: VllmSpec, seat: Seat | None, local: bool) -> Any:
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 2}  # `close` is heard while `start` waits
    if seat is not None:
        options |= {
            "num_cpus": 1,
            "num_gpus": seat.num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(seat.group, seat.bundle),
        }
    return ray.remote(VllmActor).options(**options).remote(spec, local=local)


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


async def _quiet(reference: Any) -> None:
    try:
        await reference
    except RayError as error:
        logger.debug("a judge server's actor was gone before it was closed: %s", error)
