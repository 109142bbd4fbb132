"""What a run is doing: its stages on `ray timeline`, their durations and its state on Ray's metrics endpoint."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mrpo.telemetry.table import Live, Reading

IDLE = "idle"  # between stages: the controller's own work


class Stages:
    """Give `span` to the controller. Stages may lie within each other; the innermost is the state."""

    def __init__(self, live: Live, mark: Callable[[str], AbstractContextManager[object]]) -> None:
        """Begin idle.

        Args:
            live: shows state and durations.
            mark: puts a stage on a timeline.
        """
        self._live = live
        self._mark = mark
        self._open = [IDLE]
        self._durations_s: dict[str, float] = {}  # of the newest finished stage of each name
        self._known = {IDLE}
        self.ended: Counter[str] = Counter()  # how many of each name
        self._show()

    @property
    def state(self) -> str:
        """What the run is doing."""
        return self._open[-1]

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Around a stage."""
        started = time.perf_counter()
        self._open.append(name)
        self._known.add(name)
        self._show()
        try:
            with self._mark(name):
                yield
        finally:
            # Not always the innermost: a checkpoint may be written while the next step is under way.
            del self._open[len(self._open) - 1 - self._open[::-1].index(name)]
            self.ended[name] += 1
            self._durations_s[name] = time.perf_counter() - started
            self._show()

    def _show(self) -> None:
        states = [Reading("run/state", float(name == self.state), (("state", name),)) for name in self._known]
        durations = [Reading("time/stage_s", value, (("stage", name),)) for name, value in self._durations_s.items()]
        self._live.show("stages", states + durations)


def timeline_mark(name: str) -> AbstractContextManager[object]:
    """A span of this process on `ray timeline`; Ray must be running.

    Ray offers it under a private name and behind an environment variable that must be set before Ray is imported
    (`ray._private.profiling.profile`); this is what it calls.
    """
    from ray._private.worker import global_worker

    span: AbstractContextManager[object] = global_worker.core_worker.profile_event(name.encode("ascii"), {})
    return span
