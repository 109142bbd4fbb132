"""What a row of the table of metrics says, and how a metric is found in it. Pure.

A name is `field/measure`, as in `metrics.jsonl`. Those that vary in their last part share a row, in which it stands in
braces: `faults/{kind}`; it becomes a label in Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

PREFIX = "mrpo"
EXPORTED = "ray_mrpo"  # as Ray's endpoint shows it
LONG = {"_per_s": "_per_second", "_s": "_seconds"}  # endings of our names, as Prometheus spells them


class Kind(StrEnum):
    """How the numbers of several steps belong together."""

    GAUGE = "gauge"  # the newest counts
    COUNTER = "counter"  # they add up
    HISTOGRAM = "histogram"  # of single events of a step; in no other place than Prometheus


class Unit(StrEnum):
    """What is counted or measured; the value is the word in Prometheus names."""

    SECONDS = "seconds"
    BYTES = "bytes"
    NATS = "nats"
    SHARE = "share"  # in [0, 1]
    RATIO = "ratio"  # a quotient of probabilities
    TOKENS = "tokens"
    TOKENS_PER_SECOND = "tokens_per_second"
    WORDS = "words"
    COMPLETIONS = "completions"
    ENGINES = "engines"
    GROUPS = "groups"
    BATCHES = "batches"
    BUCKETS = "buckets"
    REQUESTS = "requests"
    CALLS = "calls"
    LOOKUPS = "lookups"
    FAILURES = "failures"
    FAULTS = "faults"
    QUESTIONS = "questions"
    STEPS = "steps"
    EPOCHS = "epochs"
    VERSIONS = "versions"
    CURRENCY = "currency"  # that of `judge.prices`
    STATE = "state"
    NONE = ""  # a pure number


class Stage(StrEnum):
    """The part of a run that a metric is about: a row of the dashboard. In its order."""

    RUN = "Run"
    TIME = "Time"
    ROLLOUT = "Rollout"
    JUDGE = "Judge"
    REWARD = "Rewards and advantages"
    LEARNER = "Learner"
    SYNC = "Weight sync"
    FAULTS = "Faults and recovery"
    CHECKPOINT = "Checkpoints"
    EVALUATION = "Evaluation"
    SUPERVISED = "Supervised training"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric, or one family of metrics."""

    name: str
    unit: Unit
    kind: Kind
    stage: Stage
    description: str
    live: bool = False  # in Prometheus alone: it is exported while a step is under way
    labels: tuple[str, ...] = ()  # besides experiment and run
    buckets: tuple[float, ...] = ()  # of a histogram: upper bounds
    at_once: bool = False  # a counter that Prometheus has from each event itself, not when its step ends

    @property
    def is_family(self) -> bool:
        """Whether the last part of the name varies."""
        return self.name.endswith("}")

    @property
    def variable(self) -> str | None:
        """What a family varies in."""
        return self.name.rpartition("{")[2].rstrip("}") if self.is_family else None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels besides experiment and run."""
        return (*self.labels, self.variable) if self.variable else self.labels

    @property
    def prometheus(self) -> str:
        """The name given to Ray."""
        base = self.name.rpartition("/")[0] if self.is_family else self.name
        words = base.replace("/", "_")
        for short, long in LONG.items():
            if words.endswith(short):
                words = words.removesuffix(short) + long
                break
        parts = words.split("_")
        named = self.unit in ("", *parts) or self.unit.removesuffix("s") in parts or words.endswith(self.unit)
        return f"{PREFIX}_{words}" if named else f"{PREFIX}_{words}_{self.unit}"

    @property
    def exported(self) -> str:
        """The name under which Ray's endpoint shows it; of a histogram, that of its buckets."""
        ending = {Kind.GAUGE: "", Kind.COUNTER: "_total", Kind.HISTOGRAM: "_bucket"}[self.kind]
        return f"ray_{self.prometheus}{ending}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A number that is known while a step is under way. Queues and stages → exporter."""

    name: str  # of its row
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Live(Protocol):
    """Shows readings."""

    def show(self, group: str, readings: Iterable[Reading]) -> None:
        """Show these in place of what the group showed before."""
        ...


class Table:
    """Rows by name."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        """Take the rows.

        Raises:
            AssertionError: two of them have one name here or in Prometheus.
        """
        self.rows = rows
        self._by_name = {row.name: row for row in rows if not row.is_family}
        self._families = {row.name.rpartition("/")[0]: row for row in rows if row.is_family}
        assert len(self._by_name) + len(self._families) == len(rows), "two rows of one name"
        assert len({row.prometheus for row in rows}) == len(rows), "two rows of one Prometheus name"

    def find(self, name: str) -> tuple[Row, Mapping[str, str]] | None:
        """The row of a metric, and the labels that its name gives; None: there is no such metric."""
        row = self._by_name.get(name)
        if row is not None:
            return row, {}
        base, _, last = name.rpartition("/")
        family = self._families.get(base)
        if family is None or family.variable is None:
            return None
        return family, {family.variable: last}

    def of(self, stage: Stage) -> list[Row]:
        """The rows of a stage, in their order."""
        return [row for row in self.rows if row.stage == stage]
