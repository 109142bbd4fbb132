"""One call of `generate`: its requests on their way to engines, and the completions on their way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ray.exceptions import RayError

from mrpo.config import RolloutConfig
from mrpo.errors import EngineError
from mrpo.faults import FaultKind
from mrpo.types import Completion, RolloutRequest
from rollout.dispatch import Dispatch
from rollout.engine_slot import EngineSlot, SlotState, explain

logger = logging.getLogger(__name__)

OWNED_PER_SEQUENCE = 2  # requests with an engine, for each that it can run at once: its queue never runs dry

_Result = tuple[str, list[Completion] | Exception]  # the actor's name, and what came of it


class Sampling:
    """Sends to engines that are up, and takes back what those had that no longer are."""

    def __init__(self, requests: Sequence[RolloutRequest], rollout: RolloutConfig) -> None:
        self.dispatch = Dispatch(requests, max_owned=OWNED_PER_SEQUENCE * rollout.max_num_seqs)
        self._stall_timeout_s = rollout.stall_timeout_s
        self._results: asyncio.Queue[_Result] = asyncio.Queue()
        self._slots: dict[str, EngineSlot] = {}  # by the actor's name, while that actor has something to do
        self._streams: dict[str, list[asyncio.Task[None]]] = {}

    def share_out(self, slots: Sequence[EngineSlot]) -> None:
        """Take back what lost engines had, and send what waits.

        Args:
            slots: all that there are.
        """
        self._find_stuck()
        for name, slot in list(self._slots.items()):
            if slot.name != name or slot.state != SlotState.UP:
                self._take_back(name)
        up = {slot.name: slot for slot in slots if slot.state == SlotState.UP}
        for name, share in self.dispatch.assign(list(up)).items():
            slot = self._slots[name] = up[name]
            slot.pulse.sign()
            self._streams.setdefault(name, []).append(asyncio.create_task(self._stream(slot, share)))

    async def received(self, timeout_s: float) -> list[Completion]:
        """What came, and is due; nothing where nothing came in time.

        Raises:
            MRPOError: an engine refused a request.
        """
        try:
            name, batch = await asyncio.wait_for(self._results.get(), timeout_s)
        except TimeoutError:
            return []
        slot = self._slots.get(name)
        if slot is None:  # what a lost engine still had to say
            return []
        if isinstance(batch, EngineError):
            slot.fail(name, FaultKind.ENGINE_LOST, str(batch))
            return []
        if isinstance(batch, Exception):
            raise batch
        due = [completion for completion in batch if self.dispatch.finish(name, completion.key)]
        if due:
            slot.completed()
        return due

    def close(self) -> None:
        """Listen no longer; what engines still run for this call they finish, and nobody gets it."""
        for task in (task for tasks in self._streams.values() for task in tasks):
            task.cancel()

    async def _stream(self, slot: EngineSlot, share: list[RolloutRequest]) -> None:
        name = slot.name
        stream = slot.handle.generate.options(num_returns="streaming").remote(share)
        try:
            async for reference in stream:
                batch = await reference
                if slot.name == name:
                    slot.pulse.sign()
                self._results.put_nowait((name, batch))
        except RayError as error:
            explained = explain(slot.spec, error)
            explained.__cause__ = error
            self._results.put_nowait((name, explained))

    def _take_back(self, name: str) -> None:
        del self._slots[name]
        for task in self._streams.pop(name):
            task.cancel()
        count = self.dispatch.give_back(name)
        if count:
            logger.warning("%d unfinished requests of %s are done again", count, name)

    def _find_stuck(self) -> None:
        timeout_s = self._stall_timeout_s
        for name, slot in self._slots.items():
            due = self.dispatch.owned(name)
            if due and slot.name == name and slot.pulse.is_silent(timeout_s):
                cause = f"no completion or step for rollout.stall_timeout_s={timeout_s:g} s from {name} ({due} due)"
                slot.fail(name, FaultKind.ENGINE_STUCK, f"{cause}; see {slot.log}")
