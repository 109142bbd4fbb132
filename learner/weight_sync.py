"""Sending weights to the engines: shared memory on CPU, vLLM's NCCL or CUDA-IPC transfer on GPUs.

The order is the same for all: start → buckets → finish. Only rank 0 sends; the other ranks iterate the weights along
with it, because gathering is a collective.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from learner.weight_source import WeightSource
from mrpo.choices import WeightTransfer
from mrpo.errors import MRPOError, ReceiverLostError, WeightSyncError

log = logging.getLogger(__name__)


class WeightSyncClient(Protocol):
    """The engines' side of an update, as vLLM defines it; calls return when every engine is done."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self) -> None: ...


class RayWeightSyncClient:
    """Calls the method of the same name on every engine actor and waits for all of them.

    An engine that dies, breaks or does not answer is left behind: the update goes on with the others, and whoever owns
    the engines finds it gone or inside an update. Where they receive together, in one collective, the first to fail
    ends it for all. What an engine refuses (an error of ours) is wrong with what is sent, and ends it, too.
    """

    def __init__(
        self,
        handles: Sequence[Any],
        *,
        ranks_per_engine: int = 1,
        answer_timeout_s: float | None = None,
        together: bool = False,
    ) -> None:
        """A client of these engines.

        Args:
            handles: of their actors.
            ranks_per_engine: processes of one.
            answer_timeout_s: that an engine has for one answer; None: for ever.
            together: whether none of them can receive without all the others.
        """
        self._handles = list(handles)
        self._left_behind: set[int] = set()  # indices, in the update under way
        self._not_met: frozenset[int] = frozenset()  # those left behind when all were met: no update reaches them
        self._ranks_per_engine = ranks_per_engine
        self._answer_timeout_s = answer_timeout_s
        self._together = together

    @property
    def num_ranks(self) -> int:
        """Engine processes that receive weights."""
        return len(self._handles) * self._ranks_per_engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Engines are independent of each other, so each is told where its ranks begin in the transfer group."""
        infos = [dict(init_info) for _ in self._handles]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] = init_info["rank_offset"] + number * self._ranks_per_engine
        self._left_behind.clear()
        try:
            self._ask(lambda number, handle: handle.init_weight_transfer_engine.remote(infos[number]))
        finally:
            self._not_met = frozenset(self._left_behind)
            for number in self._not_met:  # nobody waits for it: should it come to itself, it is found inside an update
                self._handles[number].start_weight_update.remote()

    def start_weight_update(self) -> None:
        """Engines get ready for buckets; those that were not met are not waited for again."""
        self._left_behind = set(self._not_met)
        self._ask(lambda _, handle: handle.start_weight_update.remote())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """One bucket."""
        self._ask(lambda _, handle: handle.update_weights.remote(update_info))

    def finish_weight_update(self) -> None:
        """Engines run on the new weights from here."""
        self._ask(lambda _, handle: handle.finish_weight_update.remote())

    def load_adapter(self, files: dict[str, bytes]) -> None:
        """Engines run on this adapter from here."""
        import ray

        shared = ray.put(files)
        self._left_behind.clear()
        self._ask(lambda _, handle: handle.load_adapter.remote(shared))

    def _ask(self, call: Callable[[int, Any], Any]) -> None:
        """Call every engine that is still there and wait for their answers.

        Raises:
            ReceiverLostError: none is left, or one of those that receive together is lost.
            WeightSyncError: one refused.
        """
        import ray

        calls = {n: call(n, handle) for n, handle in enumerate(self._handles) if n not in self._left_behind}
        waiting = {reference: number for number, reference in calls.items()}
        deadline_s = None if self._answer_timeout_s is None else time.monotonic() + self._answer_timeout_s
        reason = ""
        while waiting:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            done, late = ray.wait(list(waiting), timeout=left_s)
            for reference in done or late:
                number = waiting.pop(reference)
                try:
                    if done:
                        ray.get(reference)
                        continue
                    reason = f"no answer within {self._answer_timeout_s:g} s"
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, MRPOError):
                        raise WeightSyncError(f"an engine refused the weight update: {error.cause}") from error
                    reason = f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"
                except ray.exceptions.RayError as error:
                    reason = str(error)
                self._left_behind.add(number)
                if self._together:
                    raise ReceiverLostError(f"an engine was lost during the weight update: {reason}")
                log.warning("receiver %d of %d is left behind: %s", number, len(self._handles), reason)
        if len(self._left_behind) == len(self._handles):
            raise ReceiverLostError(f"no engine is left to receive weights: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStats:
    """What one update came to. Learner → controller."""

    num_bytes: int
    num_buckets: int
    seconds: float


class WeightSender(Protocol):
    """One way to send; every rank holds one and calls it in lockstep."""

    def connect(self) -> None:
        """Meet the engines; once. Another set of them is another sender's, after this one is closed."""
        ...

    def send(self) -> SyncStats:
        """Send all weights: start → buckets → finish."""
        ...

    def close(self) -> None:
        """Give back what the transfer holds."""
        ...


def make_sender(
    kind: WeightTransfer, client: RayWeightSyncClient, source: WeightSource, *, bucket_mib: float, is_sender: bool
) -> WeightSender:
    """The sender of a configured transfer."""
    bucket_bytes = int(bucket_mib * 1024**2)
    if kind == WeightTransfer.SHM:
        from learner.shm_sender import ShmSender

        return ShmSender(client, source, bucket_bytes=bucket_bytes, is_sender=is_sender)
    from learner.gpu_senders import IpcSender, NcclSender

    sender = NcclSender if kind == WeightTransfer.NCCL else IpcSender
    return sender(client, source, bucket_bytes=bucket_bytes, is_sender=is_sender)
