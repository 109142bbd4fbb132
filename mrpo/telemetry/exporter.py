"""The numbers of a run on Ray's metrics endpoint, which Prometheus scrapes on every node: a watcher like any other.

Ray's endpoint shows a gauge once, in the scrape after it was set. So all gauges are set again every few seconds
(`refresh`), and one that a step no longer has goes away by itself. Counters count what this process did: a step that is
done again after a rewind is counted again, because its tokens, requests and costs were really spent twice; how far the
run has come is a gauge (`run/step`), which goes back. Faults are counted when they happen: the step in hand may never
end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mrpo.faults import Fault, FaultKind
from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Reading, Row
from mrpo.types import FailureReason

logger = logging.getLogger(__name__)

# Known before anything happens: a counter that appears with its first event hides it from `increase`.
KNOWN = {"reason": tuple(FailureReason), "kind": tuple(FaultKind)}


class RayExporter:
    """Hands metrics to Ray, which must be running. Use it from one thread; faults may come from any."""

    def __init__(self, *, experiment: str, run: str, num_steps: int, step: int) -> None:
        """Show what is known before the first step.

        Args:
            experiment: label of every metric.
            run: label of every metric: the name of the run's folder.
            num_steps: of the whole run.
            step: steps done, more than 0 where a run is resumed.
        """
        self._own = {"experiment": experiment, "run": run}
        self._metrics = {row.name: _make(row, tuple(self._own)) for row in TABLE.rows}
        self._unknown: set[str] = set()
        self._shown: dict[str, list[Reading]] = {}  # by group
        for row in TABLE.rows:
            if row.kind == Kind.COUNTER:
                self._begin_at_zero(row)
        self._num_steps = num_steps
        self.progress(step)

    def progress(self, step: int) -> None:
        """Show how many steps are done; fewer than before where the run was rewound."""
        self.show("run", [Reading("run/planned", float(self._num_steps)), Reading("run/step", float(step))])

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of a training step; what it does not have is shown no more."""
        self.progress(step)
        self.show("step", self._take(metrics))

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of an evaluation until the next one."""
        self.show("evaluation", self._take(metrics))

    def fault_begun(self, fault: Fault) -> None:
        """Count it now."""
        self._metrics["faults/{kind}"].inc(1.0, tags={**self._own, "kind": fault.kind.value})

    def fault_ended(self, fault: Fault) -> None:
        """Add the time it took now."""
        if fault.recovery_s is not None and fault.recovery_s > 0:  # a clock that was set back may say otherwise
            self._metrics["faults/recovery_s"].inc(fault.recovery_s, tags=self._own)

    def observe(self, events: Mapping[str, Sequence[float]]) -> None:
        """Add single events to histograms, by the name of the metric."""
        for name, values in events.items():
            for value in values:
                self._metrics[name].observe(value, tags=self._own)

    def show(self, group: str, readings: Iterable[Reading]) -> None:
        """Show these in place of what the group showed before."""
        self._shown[group] = list(readings)
        self._set(self._shown[group])

    def refresh(self) -> None:
        """Set all gauges again."""
        for readings in self._shown.values():
            self._set(readings)

    def _set(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self._metrics[reading.name].set(reading.value, tags={**self._own, **dict(reading.labels)})

    def _take(self, metrics: Mapping[str, float]) -> list[Reading]:
        """Count what adds up; return the gauges. What the table does not have is named once and left out."""
        gauges: list[Reading] = []
        for name, value in metrics.items():
            found = TABLE.find(name)
            if found is None:
                if name not in self._unknown:
                    self._unknown.add(name)
                    logger.warning("%s is not on Ray's metrics endpoint: mrpo/telemetry/rows.py has no such row", name)
                continue
            row, labels = found
            if row.kind == Kind.GAUGE:
                gauges.append(Reading(row.name, value, tuple(labels.items())))
            elif not row.at_once and value > 0 and math.isfinite(value):
                self._metrics[row.name].inc(value, tags={**self._own, **labels})
        return gauges

    def _begin_at_zero(self, row: Row) -> None:
        known = [{row.variable: value.value} for value in KNOWN[row.variable]] if row.variable else [{}]
        for labels in known:
            # `inc` refuses 0, which is where Prometheus wants a counter to begin.
            self._metrics[row.name]._record(0.0, {**self._own, **labels})


def _make(row: Row, own: tuple[str, ...]) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    labels = (*own, *row.label_names)
    if row.kind == Kind.HISTOGRAM:
        return Histogram(row.prometheus, row.description, boundaries=list(row.buckets), tag_keys=labels)
    made = Counter if row.kind == Kind.COUNTER else Gauge
    return made(row.prometheus, row.description, tag_keys=labels)
