"""The engines of a run as Ray actors, behind `mrpo.protocols.RolloutPool`.

An engine that dies or gets stuck is started again, and what it had not finished is done by another: requests bring
their own seeds, so that a completion that is done again is the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from mrpo.config.watchdog import WatchdogConfig
from mrpo.errors import EngineError, LearnerLostError, ParityError, WeightSyncError
from mrpo.faults import FaultKind, FaultLog
from mrpo.parity import compare_logprobs, require_parity
from mrpo.placement import Seat
from mrpo.stacks import ActorProcess
from mrpo.types import Completion, EngineDepth, RolloutRequest, ScoreSample
from rollout.absence import Absence
from rollout.engine_actor import make_actor
from rollout.engine_slot import EngineSlot, SlotState, explain
from rollout.request import refuse_mixed
from rollout.sampling import Sampling
from rollout.spec import EngineSpec

logger = logging.getLogger(__name__)

TICK_S = 0.1  # between two looks at the engines
STOP_TRACE_S = 1800.0  # of a profile: an engine writes a GPU's trace in one go, gigabytes of it


class _LostError(Exception):
    """The engine that was asked is lost, and on its way to be replaced."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """What an engine that joins must agree with."""

    sample: ScoreSample
    logprobs: list[float]  # [T] nats, of an engine with the current weights
    bound: float

    def require(self, found: list[float]) -> None:
        """Raises `ParityError` where an engine's log-probs are of other weights."""
        result = compare_logprobs([self.sample], [self.logprobs], [found])
        require_parity(result, bound=self.bound, setting="parity.probe_max_diff")


class VllmRolloutPool:
    """Make one with `start`. Shares requests out to engines and merges their streams."""

    def __init__(self, slots: Sequence[EngineSlot], *, no_engine_s: float = WatchdogConfig().no_engine_s) -> None:
        self.bring_weights: Callable[[Sequence[Any]], Awaitable[object]] | None = None
        """Gives an engine that joins the policy's current weights; None: those it started with are right."""
        self._slots = list(slots)
        self._rollout = slots[0].spec.rollout
        self._sleeps = all(slot.spec.sleeps for slot in slots)
        self._version: int | None = None  # of the policy, once there was one
        self._probe: _Probe | None = None  # under this version
        self._receiving: dict[str, EngineSlot] = {}  # engines that the publish under way reaches, by their actors
        self._samplings: list[Sampling] = []  # calls of `generate` under way
        self._tracing: list[EngineSlot] = []  # engines that record
        self._may_start = True  # an engine that shares GPUs: only while the learner is idle
        self._closed = False
        self._absence = Absence(no_engine_s)
        self._learner_lost: LearnerLostError | None = None  # since the last weight update; nobody can join
        self._tended_s = 0.0

    @classmethod
    async def start(
        cls,
        specs: Sequence[EngineSpec],
        seats: Sequence[Seat] = (),
        *,
        faults: FaultLog | None = None,
        no_engine_s: float = WatchdogConfig().no_engine_s,
        make: Callable[[EngineSpec, Seat | None, str], Any] | None = None,
    ) -> VllmRolloutPool:
        """Start all engines at the same time and wait for as many as a run needs to begin (`rollout.min_engines`).

        Args:
            specs: one an engine.
            seats: where the first of them are to live; the others, where Ray finds room.
            faults: told of engines that are lost and come back.
            no_engine_s: that may be waited for an engine while none is up or starting.
            make: makes an actor of a spec, a seat and a name; None: one that holds a vLLM engine.

        Raises:
            EngineError: an engine did not come up, or not within `rollout.start_timeout_s`.
        """
        make = make or make_actor
        faults = faults or FaultLog(None)
        slots = []
        for number, spec in enumerate(specs):
            seat = seats[number] if number < len(seats) else None
            slots.append(EngineSlot(spec, lambda spec, name, seat=seat: make(spec, seat, name), faults))
        pool = cls(slots, no_engine_s=no_engine_s)
        try:
            await pool._start()
        except BaseException:
            await pool.close()
            raise
        return pool

    async def _start(self) -> None:
        timeout_s = self._rollout.start_timeout_s
        deadline_s = time.monotonic() + timeout_s
        for slot in self._slots:
            slot.start()
        while len(self._up) < self._rollout.engines_to_begin:
            await self._tend()
            for slot in self._slots:
                if slot.start_error is not None:
                    raise slot.start_error
            if time.monotonic() > deadline_s:
                late = ", ".join(slot.name for slot in self._slots if slot.state != SlotState.UP)
                raise EngineError(
                    f"{late} not up after rollout.start_timeout_s={timeout_s:g}; see {self._slots[0].log}, or raise it"
                )
            await asyncio.sleep(TICK_S)

    @property
    def handles(self) -> list[Any]:
        """Actor handles of the engines that serve."""
        return [slot.handle for slot in self._up]

    @property
    def _up(self) -> list[EngineSlot]:
        return [slot for slot in self._slots if slot.state == SlotState.UP]

    def processes(self) -> list[ActorProcess]:
        """Where the engines that were placed run, for whoever asks for their stacks."""
        found = [slot.info for slot in self._slots]
        return [ActorProcess(name=info.name, node_id=info.node_id, pid=info.pid) for info in found if info is not None]

    def depths(self) -> list[EngineDepth]:
        """What each engine is doing now, as far as the driver knows; costs nothing."""
        depths = []
        for slot in self._slots:
            owned = sum(sampling.dispatch.owned(slot.name) for sampling in self._samplings)
            running = min(owned, self._rollout.max_num_seqs)
            depths.append(
                EngineDepth(name=slot.spec.name, state=slot.state.value, running=running, waiting=owned - running)
            )
        return depths

    @property
    def num_waiting(self) -> int:
        """Requests that no engine has been given yet."""
        return sum(sampling.dispatch.num_waiting for sampling in self._samplings)

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Completion]:
        """Stream completions as they end, in any order; every request yields exactly one.

        Raises:
            UserError: greedy and sampled requests in one call, or a request that cannot be run; nothing is yielded
                for the others after it.
            EngineError: no engine is left, and none comes back.
        """
        refuse_mixed(requests)
        sampling = Sampling(requests, self._rollout)
        self._samplings.append(sampling)
        self._may_start = True
        try:
            while sampling.dispatch.remaining:
                await self._tend()
                sampling.share_out(self._slots)
                for completion in await sampling.received(TICK_S):
                    yield completion
        finally:
            self._samplings.remove(sampling)
            sampling.close()

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """The engines' raw log-probs of given completion tokens, per sample [T] nats.

        Raises:
            UserError: a prompt that is not what the processor makes of its image.
            EngineError: no engine is left, and none comes back.
        """
        scores: dict[int, list[float]] = {}
        while len(scores) < len(samples):
            await self._until(lambda: bool(self._up))
            left, slots = [index for index in range(len(samples)) if index not in scores], self._up
            shares = [left[number :: len(slots)] for number in range(len(slots))]
            asked = [(slot, share) for slot, share in zip(slots, shares, strict=True) if share]
            answers = await self._all([slot for slot, _ in asked], "score", [[samples[i] for i in s] for _, s in asked])
            for (_, share), answer in zip(asked, answers, strict=True):
                if answer is not None:
                    scores.update(zip(share, answer, strict=True))
        return [scores[index] for index in range(len(samples))]

    async def probe(self, sample: ScoreSample, *, bound: float) -> list[list[float]]:
        """As `score` of one sample, by every engine that serves: [E][T] nats.

        Args:
            sample: scored again by engines that join before the next `set_policy_version`.
            bound: by how much these may differ, nats a token on average, or they are started again.
        """
        found: list[list[float]] = []
        while not found:
            await self._until(lambda: bool(self._up))
            found = [answer[0] for answer in await self._all(self._up, "score", [[sample]]) if answer is not None]
        self._probe = _Probe(sample, found[0], bound)
        return found

    async def sleep(self) -> None:
        """Give shared GPUs to the learner; engines with GPUs of their own, or none, stay as they are.

        Where GPUs are shared, an engine that is starting is waited for: it measures the memory it may take while nobody
        else takes or frees any. One that came up sleeps without the current weights and joins when it is awake: a
        learner that was lost has none to give.
        """
        if not self._sleeps:
            return
        await self._stop_starting(admit=False)
        for slot in self._slots:
            if slot.state == SlotState.PENDING:
                slot.withdraw()
        await self._all([slot for slot in self._slots if slot.is_there], "sleep")

    async def wake_up(self) -> None:
        """Take the weights back onto shared GPUs, to be updated; `set_policy_version` completes it."""
        if self._sleeps:
            await self._all([slot for slot in self._slots if slot.is_there], "wake_up")

    async def receivers(self) -> list[Any]:
        """Handles of the engines that the weights must reach now: all that serve, are sound and answer.

        Those that came up since get them one by one as they join, so that one that cannot harms no other; they are
        named here where nobody serves. Waits where there is none at all.

        Raises:
            EngineError: no engine is left, and none comes back.
        """
        sound: list[EngineSlot] = []
        while not sound:
            await self._until(lambda: any(slot.is_there for slot in self._slots), admit=False)
            sound = await self._sound(self._up or [slot for slot in self._slots if slot.is_there])
        self._receiving = {slot.name: slot for slot in sound}
        return [slot.handle for slot in sound]

    async def lost_receivers(self) -> bool:
        """Whether one of the engines that `receivers` named is gone since, or left inside the update, and lost so."""
        await self._sound(self._still_receiving)
        return len(self._still_receiving) < len(self._receiving)

    @property
    def _still_receiving(self) -> list[EngineSlot]:
        return [slot for name, slot in self._receiving.items() if slot.name == name and slot.is_there]

    async def _sound(self, slots: Sequence[EngineSlot]) -> list[EngineSlot]:
        """Those that answer and are outside of any weight update; the others are lost."""
        sound = []
        for slot, updating in zip(slots, await self._all(slots, "updating"), strict=True):
            if updating is False:
                sound.append(slot)
            elif updating:
                cause = f"{slot.name} is inside an unfinished weight update; see {slot.log}"
                slot.fail(slot.name, FaultKind.ENGINE_LOST, cause)
        return sound

    async def set_policy_version(self, version: int) -> None:
        """Call after a finished weight update: drops what was cached under the old weights and stamps completions."""
        slots = await self._sound(list({slot.name: slot for slot in [*self._up, *self._still_receiving]}.values()))
        self._receiving.clear()
        self._version, self._probe, self._learner_lost = version, None, None
        for slot, answer in zip(slots, await self._all(slots, "set_policy_version", [version]), strict=True):
            if answer is True:
                slot.serve()

    async def start_trace(self) -> None:
        """Engines that serve record what they compute from now on, for `make profile`."""
        self._tracing = self._up
        await self._all(self._tracing, "start_trace")

    async def stop_trace(self) -> list[bytes]:
        """End the recording; a compressed Chrome trace of each process of each engine."""
        found = await self._all([slot for slot in self._tracing if slot in self._up], "stop_trace")
        return [trace for traces in found if traces is not None for trace in traces]

    async def close(self) -> None:
        """End all engines and their processes within a few seconds. Safe to call again."""
        self._closed = True
        slots, self._slots = self._slots, []
        await asyncio.gather(*(slot.close() for slot in slots))

    async def _until(self, done: Callable[[], bool], *, admit: bool = True) -> None:
        """Tend the engines until something is true of them."""
        await self._tend(admit=admit)
        if done():
            return
        self._may_start = True  # who waits for an engine lets the learner wait, too
        while not done():
            await asyncio.sleep(TICK_S)
            await self._tend(admit=admit)
        if self._sleeps:
            await self._stop_starting(admit=admit)

    async def _stop_starting(self, *, admit: bool) -> None:
        """Start no engine from here on, and wait for those that are starting, and to let them serve if that is due."""
        self._may_start = False
        on_their_way = {SlotState.STARTING, SlotState.LOADED} if admit else {SlotState.STARTING}
        while any(slot.state in on_their_way for slot in self._slots):
            await self._tend(admit=admit)
            await asyncio.sleep(TICK_S)

    async def _tend(self, *, admit: bool = True) -> None:
        """Notice what became of the engines, and let those that came up serve unless that is the caller's business."""
        if self._closed:
            raise EngineError("the rollout pool is closed; start another")
        if all(slot.is_hopeless for slot in self._slots):
            causes = "; ".join(cause for slot in self._slots for cause in dict.fromkeys(slot.causes))
            raise EngineError(f"no rollout engine is left, and each was started again without a completion: {causes}")
        if time.monotonic() - self._tended_s >= TICK_S:
            for slot in self._slots:
                slot.poll(may_start=self._may_start)
            self._tended_s = time.monotonic()
        if admit and self._learner_lost is not None and not self._up:
            raise self._learner_lost
        for slot in self._slots:
            if admit and slot.state == SlotState.LOADED and self._learner_lost is None:
                await self._admit(slot)
        self._absence.look(self._slots)

    async def _admit(self, slot: EngineSlot) -> None:
        """An engine joins: it gets the current weights before its first request."""
        try:
            if self.bring_weights is not None:
                await self.bring_weights([slot.handle])
            if self._version is not None:
                await self._call(slot, "set_policy_version", self._version)
            if self._probe is not None:
                (found,) = await self._call(slot, "score", [self._probe.sample])
                self._probe.require(found)
        except (WeightSyncError, ParityError) as error:
            slot.fail(slot.name, FaultKind.ENGINE_LOST, f"{slot.name} has not got the weights: {error}")
        except _LostError:
            return
        except LearnerLostError as error:
            # What others have begun is finished first: an engine that runs requests takes no weights afterwards.
            self._learner_lost = error
            logger.warning("%s cannot join before the learner is there again: %s", slot.name, error)
        else:
            slot.serve()
            self._absence.end()
            logger.info("%s joins", slot.name)

    async def _call(self, slot: EngineSlot, method: str, *arguments: Any) -> Any:
        """One call of one engine.

        Raises:
            MRPOError: one of ours, as the engine raised it.
            _LostError: the engine is lost, and that is dealt with.
        """
        name, pulse = slot.name, slot.pulse
        answer = asyncio.ensure_future(getattr(slot.handle, method).remote(*arguments))
        pulse.sign()
        timeout_s, setting = self._rollout.stall_timeout_s, "rollout.stall_timeout_s="
        if method == "stop_trace":
            timeout_s, setting = STOP_TRACE_S, ""
        try:
            while not (await asyncio.wait({answer}, timeout=TICK_S))[0]:
                if pulse.is_silent(timeout_s):
                    break
            else:
                return answer.result()
            kind = FaultKind.ENGINE_STUCK
            cause = f"{name} did not answer {method}, and made no step, for {setting}{timeout_s:g} s; see {slot.log}"
        except RayError as error:
            explained = explain(slot.spec, error)
            if not isinstance(explained, EngineError):
                raise explained from error
            kind, cause = FaultKind.ENGINE_LOST, str(explained)
        finally:
            answer.cancel()
        slot.fail(name, kind, cause)
        raise _LostError(cause)

    async def _all(self, slots: Sequence[EngineSlot], method: str, *arguments: Sequence[Any]) -> list[Any]:
        """The answers of several engines; None of one that is lost. Each argument is a list: for each, or for all."""
        calls = []
        for number, slot in enumerate(slots):
            calls.append(self._call(slot, method, *(a[number] if len(a) == len(slots) else a[0] for a in arguments)))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, _LostError):
                raise answer
        return [None if isinstance(answer, _LostError) else answer for answer in answers]
