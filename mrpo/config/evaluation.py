"""What is checked and measured beside training."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.choices import CheckpointChoice
from mrpo.config.fields import STRICT, NonNegativeInt, Positive, PositiveInt


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ParityConfig:
    """Learner and engine must agree on log-probs before the first step, and after every weight sync."""

    num_completions: PositiveInt = 8
    max_mean_diff: Positive = 1e-3  # nats, mean |Δ| over the sampled tokens
    probe_max_diff: Positive = 1e-2  # nats, mean |Δ| on the fixed probe after each sync


@dataclass(kw_only=True, frozen=True, config=STRICT)
class EvalConfig:
    """Greedy evaluation on held-out questions before, during and after training."""

    before: bool = True
    after: bool = True
    every_steps: NonNegativeInt = 0  # 0: not during training
    num_periodic: PositiveInt | None = None  # questions of an evaluation during training, the first; null: all
    judge: bool = True  # rule on steps too, where a gold rationale exists


@dataclass(kw_only=True, frozen=True, config=STRICT)
class BenchmarkConfig:
    """What `make eval` measures: one model on prepared sets, or what it generated elsewhere."""

    model: str | None = None  # a run folder, a Hugging Face folder or a hub id
    checkpoint: CheckpointChoice = CheckpointChoice.LATEST  # of a run folder
    generations: str | None = None  # JSON, JSONL or Parquet of outputs; no model is loaded then
    name: str | None = None  # of the model in tables; null: after its folder, id or file
    sets: tuple[str, ...] = ()  # prepared by `make data`
    root: str = "data"  # folder that holds a folder of each set
    out: str | None = None  # folder of results; null: one under runs_dir, named after model and settings
    num_questions: PositiveInt | None = None  # of each set, the first; null: all
    chunk_size: PositiveInt = 64  # questions between two writes: what a kill can cost
    compare: tuple[str, ...] = ()  # folders of finished evaluations, to be shown side by side; nothing is measured
    vlmevalkit: bool = False  # also write the sets as VLMEvalKit reads them


@dataclass(kw_only=True, frozen=True, config=STRICT)
class CheckConfig:
    """What `make judge-check` measures: the judge of `judge.*` against labelled steps."""

    labels: str | None = None  # JSONL or CSV of labelled steps; null: the phantom set that ships
    repeats: PositiveInt = 3  # askings of every completion as it is
    orders: NonNegativeInt = 1  # askings of every completion with its steps in another order
    attacks: bool = True  # also try the attacks that ship
    against: str | None = None  # folder of an earlier check of the same labels, to compare with
    name: str | None = None  # of the judge in tables; null: its model, or kind
    out: str | None = None  # folder of results; null: one under runs_dir, named after judge and settings
    template: str | None = None  # new CSV or JSONL file: write a blank sheet to label there, and ask no judge
    source: str | None = None  # of the sheet's completions: a run or evaluation folder, or a Parquet file of one;
    # null: questions of benchmark.sets with outputs of benchmark.generations, or nothing
    num_completions: PositiveInt = 100  # of the sheet, drawn by `seed` where there are more
