"""The learner the controller talks to: a group of ranks in Ray actors, with placement and rendezvous hidden."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.deadlines import load_deadline, snapshot_deadline, write_deadline
from learner.distributed import environment
from learner.ranks import Deadline, Ranks
from learner.receivers import Receivers
from learner.spec import LearnerSpec
from mrpo.choices import Device, WeightTransfer
from mrpo.errors import LearnerStuckError, ResourceError
from mrpo.placement import Seat
from mrpo.types import LearnStats, ScoreSample, SftSample, TrainSample

log = logging.getLogger(__name__)

OLD_WRITE_S = 60.0  # at most, for which a snapshot waits until a write that was given up has ended
CLOSE_TIMEOUT_S = 4.0  # a rank in the middle of a long call is killed: Ctrl-C ends a run within 15 s


class DeepSpeedLearner:
    """`mrpo.protocols.Learner` over DeepSpeed ranks: `start`, `connect`, then the rest, and `close` at the end."""

    def __init__(self, spec: LearnerSpec, seats: Sequence[Seat] = (), *, log_dir: str | None = None) -> None:
        """A group that is given no seats finds a place of its own, as a whole.

        Args:
            spec: of every rank.
            seats: of the ranks.
            log_dir: existing folder for the stacks of ranks that are stuck; None: they are only quoted.
        """
        self._spec = spec
        self._seats = list(seats)
        self._log_dir = log_dir
        self._placement: PlacementGroup | None = None
        self._ranks = Ranks(log_dir)
        self._is_restart = False
        self._num_nodes = 1
        self._checkpoint_bytes = 0
        self._transfer = WeightTransfer.SHM
        self._ranks_per_engine = 1
        self.publish_timeout_s = spec.learner.publish_timeout_s

    async def start(self) -> None:
        """Place the group as a whole, start its ranks and load the model.

        Raises:
            ResourceError: the cluster has no room for the group, or it did not start in time.
            ConfigError: the model or a setting is not supported.
            LearnerLostError: a rank died.
        """
        num_ranks, timeout_s = self._spec.learner.num_ranks, self._spec.learner.start_timeout_s
        resources = {"CPU": 1.0} if self._spec.device == Device.CPU else {"CPU": 1.0, "GPU": 1.0}
        if not self._seats:
            self._placement = placement_group([resources] * num_ranks, strategy="PACK")
        try:
            async with asyncio.timeout(timeout_s):
                seats = self._seats or await self._own_seats()
                for seat in seats:
                    self._ranks.add(self._spec, self._options(seat, resources))
                nodes = await self._ranks.locate()
                address, port = (await self._all("rendezvous"))[0]
                await self._all("start", address, port, nodes)
                self._num_nodes = len(set(nodes))
                self._checkpoint_bytes = (await self._all("checkpoint_bytes"))[0]
        except TimeoutError:
            where = await self._ranks.whereabouts("start")
            await self.close()
            if where and self._is_restart:
                raise LearnerStuckError(f"the learner did not start again in {timeout_s:.0f} s: {where}") from None
            raise ResourceError(
                f"the learner did not start within learner.start_timeout_s={timeout_s:.0f} s: "
                + (
                    f"loading the model takes longer; raise it ({where})"
                    if where
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

    async def restart(self) -> None:
        """End what is left of the group and start it anew, with the weights the run began with; `load` comes next.

        How weights travel stays as `connect` said; engines are met with the next `publish`. Raises as `start`.
        """
        await self.close()
        self._ranks = Ranks(self._log_dir)
        self._is_restart = True
        await self.start()

    def begin_with(self, model_folder: str) -> None:
        """Say which weights a restart begins with, where they are not those loaded at first (after a warm start)."""
        self._spec = replace(self._spec, model_folder=model_folder)

    def _options(self, seat: Seat, resources: Mapping[str, float]) -> dict[str, Any]:
        return {
            "num_cpus": resources["CPU"],
            "num_gpus": seat.num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(seat.group, seat.bundle),
            "runtime_env": {"env_vars": environment(self._spec.device)},
        }

    def connect(self, *, transfer: WeightTransfer, ranks_per_engine: int = 1) -> None:
        """Say how weights travel; which engines they reach is said with each `publish`.

        Args:
            transfer: the way.
            ranks_per_engine: processes of one engine (tensor parallel).
        """
        self._transfer, self._ranks_per_engine = transfer, ranks_per_engine

    async def step(self, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
        """One optimizer step; see `learner.step.train_step`."""
        stats: LearnStats = (await self._all("step", _shared(samples), progress, deadline=self._learn_deadline))[0]
        return stats

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """Log-probs of the given completion tokens under the current weights, per sample [T] nats."""
        if not samples:
            return []
        merged: dict[int, list[float]] = {}
        for part in await self._all("score", _shared(samples), deadline=self._score_deadline):
            merged |= part
        return [merged[index] for index in range(len(samples))]

    async def warm_start(
        self, examples: Sequence[SftSample], *, num_steps: int, batch_size: int, lr: float, seed: int
    ) -> list[float]:
        """Supervised start of a toy; returns the loss of every step. See `learner.sft.Supervision.warm_start`."""
        stats = await self._all(
            "warm_start", _shared(examples), num_steps, batch_size, lr, seed, deadline=self._learn_deadline
        )
        losses: list[float] = stats[0].losses
        return losses

    async def sft_step(
        self, examples: Sequence[SftSample], *, num_steps: int, lr: float, warmup_share: float
    ) -> LearnStats:
        """One step on demonstrations; see `learner.sft.Supervision.step`."""
        stats: LearnStats = (
            await self._all("sft_step", _shared(examples), num_steps, lr, warmup_share, deadline=self._learn_deadline)
        )[0]
        return stats

    async def sft_loss(self, examples: Sequence[SftSample]) -> tuple[float, int]:
        """Summed loss of demonstrations in nats, and their target tokens; see `learner.sft.Supervision.loss`."""
        total: tuple[float, int] = (await self._all("sft_loss", _shared(examples), deadline=self._score_deadline))[0]
        return total

    async def publish(self, receivers: Sequence[Any]) -> Mapping[str, float]:
        """Send the current weights to these engines; one that dies on the way is left behind.

        Args:
            receivers: Ray actor handles with vLLM's four weight-transfer methods, each taking a plain dict. Where they
                are not those of the call before, the ranks meet them first.

        Raises:
            WeightSyncError: an engine refused them, or none is left.
            LearnerLostError: they did not arrive in time; the ranks are stopped then.
        """
        to = Receivers(engines=tuple(receivers), transfer=self._transfer, ranks_per_engine=self._ranks_per_engine)
        # An engine that fails in the middle of a broadcast leaves rank 0 waiting for it on the GPU.
        deadline = Deadline("learner.publish_timeout_s", self.publish_timeout_s)
        stats = (await self._all("publish", to, deadline=deadline))[0]
        return {"bytes": float(stats.num_bytes), "buckets": float(stats.num_buckets), "seconds": stats.seconds}

    async def save(self, folder: str) -> None:
        """Write everything needed to resume, and `hf/`, into an existing folder on rank 0's host."""
        await self._all("save", folder, deadline=write_deadline(self._spec.watchdog, self._checkpoint_bytes))

    async def snapshot(self) -> None:
        """Copy what `save` would write to the main memory of rank 0's host.

        Raises:
            ResourceError: a write that was given up has still not ended, and holds its copy there.
        """
        deadline = snapshot_deadline(self._spec.watchdog, self._checkpoint_bytes)
        await self._all("snapshot", min(OLD_WRITE_S, deadline.seconds / 2), deadline=deadline)

    async def write(self, folder: str) -> None:
        """Write the newest snapshot as `save` does; rank 0 trains on meanwhile.

        Raises:
            ResourceError: the disk is full, cannot be written, or slower than `watchdog.min_disk_mib_s`.
            LearnerLostError: rank 0 died.
        """
        deadline = write_deadline(self._spec.watchdog, self._checkpoint_bytes)
        await self._ranks.call_writer("write", folder, deadline=deadline)

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote; every rank reads the folder."""
        deadline = load_deadline(self._spec.watchdog, self._checkpoint_bytes, num_nodes=self._num_nodes)
        await self._all("load", folder, deadline=deadline)

    async def start_trace(self, *, stacks: bool) -> None:
        """Every rank records what it computes from now on, for `make profile`; `stacks`: Python's frames too."""
        await self._all("start_trace", stacks, deadline=self._trace_deadline)

    async def stop_trace(self) -> list[bytes]:
        """End the recording; a compressed Chrome trace of each rank."""
        traces: list[bytes] = await self._all("stop_trace", deadline=self._trace_deadline)
        return traces

    async def close(self) -> None:
        """Stop the ranks and free their place; safe to call at any time."""
        leaving = [rank.close.remote() for rank in self._ranks.handles]
        if leaving:
            # A rank that is stuck or dead must not keep the others: what is left is killed.
            await asyncio.wait([asyncio.ensure_future(_settled(call)) for call in leaving], timeout=CLOSE_TIMEOUT_S)
        await self._ranks.kill()
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    async def _all(self, method: str, *arguments: Any, deadline: Deadline | None = None) -> list[Any]:
        """See `Ranks.call`."""
        return await self._ranks.call(method, *arguments, deadline=deadline)

    @property
    def _learn_deadline(self) -> Deadline:
        return Deadline("watchdog.learn_s", self._spec.watchdog.learn_s)

    @property
    def _score_deadline(self) -> Deadline:
        return Deadline("watchdog.score_s", self._spec.watchdog.score_s)

    @property
    def _trace_deadline(self) -> Deadline:
        return Deadline("watchdog.save_s", self._spec.watchdog.save_s)


async def _settled(call: Any) -> None:
    try:
        await call
    except ray.exceptions.RayError as error:
        log.warning("a learner rank did not close cleanly: %s", error)


def _shared(values: Sequence[Any]) -> Any:
    """One copy in the object store for all ranks."""
    return ray.put(list(values))
