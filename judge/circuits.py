"""The circuits of a pool's endpoints, and the calls that wait while none may be asked.

They are kept where every call starts, so that an open circuit is open for all actors and one call at a time tries it.
Such a call is a real one: it comes as soon as an endpoint is due, and what becomes of it decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mrpo.choices import OutagePolicy
from mrpo.config import JudgeConfig
from mrpo.faults import Fault, FaultKind, FaultLog

logger = logging.getLogger(__name__)
FIRST_TRIALS = 8  # the first trial comes after this part of the cool-down, each further one after twice the time
FIRST_STATUS_S = 10.0  # into an outage; then after twice the time, up to
STATUS_EVERY_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a call may go, and how."""

    trial: int | None = None  # the endpoint to try, whose circuit is open
    refusal: str | None = None  # why it may not


@dataclass(slots=True)
class Circuit:
    """One endpoint."""

    name: str
    is_open: bool = False
    reason: str = ""
    due_s: float = 0.0  # when the next trial may be made
    pause_s: float = 0.0  # until the trial after that
    is_tried: bool = False  # by a call that is under way


class Circuits:
    """Who may call, and when. Use it from one event loop."""

    def __init__(
        self,
        names: list[str],
        config: JudgeConfig,
        *,
        tell: Callable[[int, bool], None],
        on_event: Callable[[str], None] | None = None,
        faults: FaultLog | None = None,
    ) -> None:
        """All circuits are closed.

        Args:
            names: of the endpoints.
            config: breaker and outage policy.
            tell: called with an endpoint and whether its circuit is open, when that changes.
            on_event: called with a line when an outage begins and when it ends; None: it is logged as a warning.
            faults: told of outages.
        """
        self._circuits = [Circuit(name) for name in names]
        self._config = config
        self._tell = tell
        self._on_event = on_event or logger.warning
        self._faults = faults or FaultLog(None)
        self._fault: Fault | None = None
        self._waiting: deque[asyncio.Future[Admission]] = deque()
        self._out_since: float | None = None
        self._counted_s = 0.0  # of outage, not taken yet
        self._counted_until = 0.0
        self._changed = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Calls that wait for an endpoint."""
        return len(self._waiting)

    @property
    def is_out(self) -> bool:
        """Whether no endpoint may be asked."""
        return all(circuit.is_open for circuit in self._circuits)

    @property
    def open(self) -> list[int]:
        """The endpoints whose circuits are open."""
        return [index for index, circuit in enumerate(self._circuits) if circuit.is_open]

    def rename(self, endpoint: int, name: str) -> None:
        """Call an endpoint by another name in messages."""
        self._circuits[endpoint].name = name

    def status(self) -> str | None:
        """How an outage stands, in a line; None where there is none."""
        if self._out_since is None:
            return None
        now = time.monotonic()
        due_s = min((item.due_s for item in self._circuits if not item.is_tried), default=now)
        trial = f"asking again in {due_s - now:.0f} s" if due_s > now else "asking again …"
        reasons = "; ".join(dict.fromkeys(item.reason for item in self._circuits))
        return f"judge: out for {now - self._out_since:.0f} s ({reasons}), {len(self._waiting)} calls wait, {trial}"

    def take_outage_s(self) -> float:
        """Seconds without any endpoint since this was asked last."""
        self._count()
        taken, self._counted_s = self._counted_s, 0.0
        return taken

    async def admit(self) -> Admission:
        """Let a call go; by policy it waits while there is nobody to ask."""
        trial = self._due()
        if trial is not None and not self._waiting:
            return self._try(trial)
        if not self.is_out:
            return Admission()
        if self._config.on_outage == OutagePolicy.FAIL or self._is_too_long():
            return Admission(refusal=self._refusal())
        turn: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._changed.set()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result().trial is not None:
                self.tried(turn.result().trial, passed=None)
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def opened(self, endpoint: int, reason: str, for_s: float | None = None) -> None:
        """An actor found that an endpoint does not work, or that it wants to be left alone for so long."""
        circuit = self._circuits[endpoint]
        if circuit.is_open:
            circuit.due_s = max(circuit.due_s, time.monotonic() + (for_s or 0.0))  # it turned a trial away
            return
        cool_down_s = self._config.breaker.cool_down_s
        circuit.is_open, circuit.reason = True, reason
        circuit.pause_s = cool_down_s / FIRST_TRIALS
        circuit.due_s = time.monotonic() + (circuit.pause_s if for_s is None else for_s)
        self._tell(endpoint, True)
        if self.is_out:
            self._begin_outage(reason)
        else:
            logger.warning("judge endpoint %s is left out: %s", circuit.name, reason)

    def tried(self, endpoint: int | None, *, passed: bool | None) -> None:
        """A trial ended; None: before anything was learned of the endpoint."""
        if endpoint is None:
            return
        circuit = self._circuits[endpoint]
        circuit.is_tried = False
        if passed:
            self._close_circuit(endpoint)
        elif passed is not None:
            circuit.pause_s = min(2 * circuit.pause_s, self._config.breaker.cool_down_s)
            circuit.due_s = max(circuit.due_s, time.monotonic() + circuit.pause_s)
        self._changed.set()

    def close(self) -> None:
        """End what waits; its calls are refused."""
        self._release(Admission(refusal="the judge pool was closed"))
        if self._tending is not None:
            self._tending.cancel()

    def _due(self) -> int | None:
        now = time.monotonic()
        due = [i for i, item in enumerate(self._circuits) if item.is_open and not item.is_tried and item.due_s <= now]
        return due[0] if due else None

    def _try(self, endpoint: int) -> Admission:
        self._circuits[endpoint].is_tried = True
        return Admission(trial=endpoint)

    def _close_circuit(self, endpoint: int) -> None:
        was_out = self.is_out
        circuit = self._circuits[endpoint]
        circuit.is_open = False
        self._tell(endpoint, False)
        if was_out:
            self._end_outage()
        else:
            logger.warning("judge endpoint %s answers again", circuit.name)

    def _begin_outage(self, reason: str) -> None:
        self._out_since = self._counted_until = time.monotonic()
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(self._tend())
        policy = "calls fail" if self._config.on_outage == OutagePolicy.FAIL else "calls wait"
        self._say(f"judge down: {reason}; {policy} until it answers (judge.on_outage={self._config.on_outage})")
        asyncio.get_running_loop().call_soon(self._note_outage, reason)

    def _end_outage(self) -> None:
        assert self._out_since is not None
        self._count()
        seconds = time.monotonic() - self._out_since
        self._out_since = None
        self._say(f"judge up again after {seconds:.0f} s, {len(self._waiting)} calls go on")
        asyncio.get_running_loop().call_soon(self._note_end)
        self._release(Admission())

    def _say(self, line: str) -> None:
        """Tell of it later: whoever writes it down may fail, and calls depend on what happens here."""
        asyncio.get_running_loop().call_soon(self._on_event, line)

    def _note_outage(self, reason: str) -> None:
        self._fault = self._faults.begin(FaultKind.JUDGE_OUTAGE, "judge", reason)

    def _note_end(self) -> None:
        if self._fault is not None:
            self._faults.end(self._fault)

    async def _tend(self) -> None:
        """During an outage: hand out trials, say how it stands, and give up in the end."""
        pause_s = FIRST_STATUS_S
        next_status_s = time.monotonic() + pause_s
        while self._out_since is not None:
            now = time.monotonic()
            if self._is_too_long():
                self._release(Admission(refusal=self._refusal()))
            while (trial := self._due()) is not None and (turn := self._next_turn()) is not None:
                turn.set_result(self._try(trial))
            if now >= next_status_s:
                logger.warning(self.status())
                pause_s = min(2 * pause_s, STATUS_EVERY_S)
                next_status_s = now + pause_s
            await self._sleep_until(min(next_status_s, self._next_deadline(now)))

    async def _sleep_until(self, at_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, at_s - time.monotonic())):
                await self._changed.wait()

    def _next_deadline(self, now: float) -> float:
        """When something is due next, as far as is known now."""
        assert self._out_since is not None or not self.is_out
        due = [item.due_s for item in self._circuits if item.is_open and not item.is_tried and item.due_s > now]
        if self._out_since is not None and not self._is_too_long():
            due.append(self._out_since + self._config.max_outage_s)
        return min(due, default=now + STATUS_EVERY_S)

    def _next_turn(self) -> asyncio.Future[Admission] | None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn
        return None

    def _release(self, admission: Admission) -> None:
        while (turn := self._next_turn()) is not None:
            turn.set_result(admission)

    def _is_too_long(self) -> bool:
        return self._out_since is not None and time.monotonic() - self._out_since >= self._config.max_outage_s

    def _refusal(self) -> str:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in self._circuits)
        if self._config.on_outage == OutagePolicy.FAIL:
            return f"no endpoint of the judge answers ({reasons})"
        return f"no endpoint of the judge has answered for judge.max_outage_s={self._config.max_outage_s:g} ({reasons})"

    def _count(self) -> None:
        if self._out_since is not None:
            now = time.monotonic()
            self._counted_s += now - self._counted_until
            self._counted_until = now
