"""The learner the controller talks to: a group of ranks in Ray actors, with placement and rendezvous hidden."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.actor import LearnerActor
from learner.distributed import environment
from learner.spec import LearnerSpec
from mrpo.choices import Device, WeightTransfer
from mrpo.errors import MRPOError, ResourceError, WeightSyncError
from mrpo.placement import Seat
from mrpo.types import LearnStats, ScoreSample, SftSample, TrainSample

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 4.0  # a rank in the middle of a long call is killed: Ctrl-C ends a run within 15 s


class DeepSpeedLearner:
    """`mrpo.protocols.Learner` over DeepSpeed ranks: `start`, `connect`, then the rest, and `close` at the end."""

    def __init__(self, spec: LearnerSpec, seats: Sequence[Seat] = ()) -> None:
        """A group that is given no seats finds a place of its own, as a whole."""
        self._spec = spec
        self._seats = list(seats)
        self._placement: PlacementGroup | None = None
        self._ranks: list[Any] = []

    async def start(self) -> None:
        """Place the group as a whole, start its ranks and load the model.

        Raises:
            ResourceError: the cluster has no room for the group, or it did not start in time.
            ConfigError: the model or a setting is not supported.
        """
        num_ranks, timeout_s = self._spec.learner.num_ranks, self._spec.learner.start_timeout_s
        resources = {"CPU": 1.0} if self._spec.device == Device.CPU else {"CPU": 1.0, "GPU": 1.0}
        if not self._seats:
            self._placement = placement_group([resources] * num_ranks, strategy="PACK")
        try:
            async with asyncio.timeout(timeout_s):
                seats = self._seats or await self._own_seats()
                self._ranks = [self._actor(rank, seat, resources) for rank, seat in enumerate(seats)]
                nodes = await self._all("node")
                address, port = await self._ranks[0].rendezvous.remote()
                await self._all("start", address, port, nodes)
        except TimeoutError:
            placed = bool(self._ranks)
            await self.close()
            raise ResourceError(
                f"the learner did not start within learner.start_timeout_s={timeout_s:.0f} s: "
                + (
                    "loading the model takes longer; raise it"
                    if placed
                    else f"{num_ranks} × {resources} are not free on the cluster ({ray.available_resources()}); "
                    "add nodes or lower learner.num_ranks"
                )
            ) from None
        except BaseException:
            await self.close()
            raise

    async def _own_seats(self) -> list[Seat]:
        assert self._placement is not None
        await self._placement.ready()
        num_gpus = 1 if self._spec.device == Device.GPU else 0
        ranks = range(self._spec.learner.num_ranks)
        return [Seat(group=self._placement, bundle=rank, num_gpus=num_gpus) for rank in ranks]

    def _actor(self, rank: int, seat: Seat, resources: Mapping[str, float]) -> Any:
        return (
            ray.remote(LearnerActor)
            .options(
                name=None,
                num_cpus=resources["CPU"],
                num_gpus=seat.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(seat.group, seat.bundle),
                runtime_env={"env_vars": environment(self._spec.device)},
            )
            .remote(self._spec, rank)
        )

    async def connect(self, engines: Sequence[Any], *, transfer: WeightTransfer, ranks_per_engine: int = 1) -> None:
        """Meet the engines that will receive weights.

        Args:
            engines: Ray actor handles with vLLM's four weight-transfer methods, each taking a plain dict.
            transfer: how weights travel.
            ranks_per_engine: processes of one engine (tensor parallel).
        """
        await self._all("connect", list(engines), transfer, ranks_per_engine)

    async def step(self, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
        """One optimizer step; see `learner.step.train_step`."""
        stats: LearnStats = (await self._all("step", _shared(samples), progress))[0]
        return stats

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """Log-probs of the given completion tokens under the current weights, per sample [T] nats."""
        if not samples:
            return []
        merged: dict[int, list[float]] = {}
        for part in await self._all("score", _shared(samples)):
            merged |= part
        return [merged[index] for index in range(len(samples))]

    async def warm_start(
        self, examples: Sequence[SftSample], *, num_steps: int, batch_size: int, lr: float, seed: int
    ) -> list[float]:
        """Supervised start of a toy; returns the loss of every step. See `learner.sft.Supervision.warm_start`."""
        stats = await self._all("warm_start", _shared(examples), num_steps, batch_size, lr, seed)
        losses: list[float] = stats[0].losses
        return losses

    async def sft_step(
        self, examples: Sequence[SftSample], *, num_steps: int, lr: float, warmup_share: float
    ) -> LearnStats:
        """One step on demonstrations; see `learner.sft.Supervision.step`."""
        stats: LearnStats = (await self._all("sft_step", _shared(examples), num_steps, lr, warmup_share))[0]
        return stats

    async def sft_loss(self, examples: Sequence[SftSample]) -> tuple[float, int]:
        """Summed loss of demonstrations in nats, and their target tokens; see `learner.sft.Supervision.loss`."""
        total: tuple[float, int] = (await self._all("sft_loss", _shared(examples)))[0]
        return total

    async def publish(self) -> Mapping[str, float]:
        """Send the current weights to all engines.

        Raises:
            WeightSyncError: an engine refused them, or they did not arrive in time; the ranks are stopped then.
        """
        timeout_s = self._spec.learner.publish_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                stats = (await self._all("publish"))[0]
        except TimeoutError:
            # An engine that fails in the middle of a broadcast leaves rank 0 waiting for it on the GPU.
            self._kill_ranks()
            raise WeightSyncError(
                f"weights were not with all engines within learner.publish_timeout_s={timeout_s:g} s, and the learner "
                "was stopped: most likely an engine failed in the middle of the transfer, which its log says "
                "(logs/engine-N.log in the run folder); where the network is slow, raise it. Then resume=<this run>"
            ) from None
        return {"bytes": float(stats.num_bytes), "buckets": float(stats.num_buckets), "seconds": stats.seconds}

    async def save(self, folder: str) -> None:
        """Write everything needed to resume, and `hf/`, into an existing folder on rank 0's host."""
        await self._all("save", folder)

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote; every rank reads the folder."""
        await self._all("load", folder)

    async def close(self) -> None:
        """Stop the ranks and free their place; safe to call at any time."""
        leaving = [rank.close.remote() for rank in self._ranks]
        if leaving:
            # A rank that is stuck or dead must not keep the others: what is left is killed.
            await asyncio.wait([asyncio.ensure_future(_settled(call)) for call in leaving], timeout=CLOSE_TIMEOUT_S)
        self._kill_ranks()
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    def _kill_ranks(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Call every rank and wait for all; an error of our own leaves the actor boundary as itself.

        Raises:
            MRPOError: what a rank raised, or that a rank died; there are no ranks (any more).
        """
        if not self._ranks:
            raise MRPOError(f"the learner's ranks are not running, and cannot {method}")
        calls = [getattr(rank, method).remote(*arguments) for rank in self._ranks]
        try:
            return list(await asyncio.gather(*calls))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MRPOError):
                raise error.cause from error
            raise
        except ray.exceptions.RayActorError as error:
            raise MRPOError(f"a learner rank died during {method}: {error}") from error


async def _settled(call: Any) -> None:
    try:
        await call
    except ray.exceptions.RayError as error:
        log.warning("a learner rank did not close cleanly: %s", error)


def _shared(values: Sequence[Any]) -> Any:
    """One copy in the object store for all ranks."""
    return ray.put(list(values))
