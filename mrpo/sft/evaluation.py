"""Greedy completions of held-out questions by a trained model, their accuracy and their failure cascades, on record."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo.collection import Collector
from mrpo.config import Config
from mrpo.eval.on_record import Recorder, Watcher, put_on_record
from mrpo.sampling_order import greedy_requests
from mrpo.types import Example


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
    put_on_record(name, traces, config, step=step, recorder=recorder, watchers=watchers)
