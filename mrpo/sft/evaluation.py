"""Greedy completions of held-out questions by a trained model, their accuracy and their failure cascades, on record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mrpo.collection import Collector
from mrpo.config import Config
from mrpo.eval.record import EvalRecord, record_of
from mrpo.judge_stop import require_budget
from mrpo.metrics import evaluation_metrics
from mrpo.sampling_order import greedy_requests
from mrpo.types import Example


class Recorder(Protocol):
    """Where evaluations are kept (the run folder)."""

    def write_evaluation(self, name: str, records: Sequence[EvalRecord]) -> Path: ...


class Watcher(Protocol):
    """Who is told."""

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None: ...


async def evaluate(
    name: str,
    questions: Sequence[Example],
    collector: Collector,
    config: Config,
    *,
    step: int,
    recorder: Recorder,
    watchers: Sequence[Watcher],
) -> None:
    """Ask all questions as an evaluation during reinforcement does, so that the numbers compare.

    Args:
        name: `before` or `after`.
        questions: held out.
        collector: of engines that hold the model.
        config: of the run.
        step: optimizer steps the model has seen.
        recorder: takes the completions.
        watchers: take the numbers.

    Raises:
        JudgeBudgetError: the judge may not be paid any more.
    """
    examples = {example.id: example for example in questions}
    requests = greedy_requests(examples, max_new_tokens=config.rollout.max_new_tokens)
    await collector.rollout.set_policy_version(step)
    traces = await collector.collect(examples, requests, policy_version=step, judge_steps=config.eval.judge)
    require_budget(traces)
    records = [record_of(trace, threshold=config.algorithm.threshold) for trace in traces]
    recorder.write_evaluation(name, records)
    metrics = evaluation_metrics(records)
    for watcher in watchers:
        watcher.evaluation(name, step, metrics)
