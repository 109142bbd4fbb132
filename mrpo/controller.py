"""The loop: sample and judge, score, learn, send the weights, record. Plain Python over Protocols.

A step is strictly on-policy (`max_staleness` = 0): its completions come from the weights it then updates. All that a
step does follows from its number and the weights, so that a run can stop after any step and go on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mrpo.checkpoints import CheckpointRecorder, Checkpoints
from mrpo.collection import Collector
from mrpo.config import Config
from mrpo.errors import (
    JudgeUnavailableError,
    LearnerLostError,
    MRPOError,
    NonFiniteError,
    ParityError,
    ReceiverLostError,
)
from mrpo.eval.on_record import put_on_record
from mrpo.eval.record import EvalRecord
from mrpo.faults import FaultLog
from mrpo.judge_noise import NoisyTraces, add_judge_noise
from mrpo.judge_stop import require_budget
from mrpo.metrics import evaluation_metrics, step_distributions, step_metrics, sync_metrics
from mrpo.nonfinite import SkippedSteps, TraceRecorder
from mrpo.parity import ParityResult, compare_logprobs, require_parity
from mrpo.protocols import Learner
from mrpo.recovery import Recovery, RewindableRecorder
from mrpo.run_reading import BestStep
from mrpo.sampling_order import greedy_requests, prompts_of_step, requests_of_step
from mrpo.scoring import ScoredBatch, ScoredTrace, Trace, judge_failures, score_group_batch
from mrpo.tasks import unless_set
from mrpo.types import (
    Example,
    LearnStats,
    ScoreSample,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Recorder(CheckpointRecorder, RewindableRecorder, TraceRecorder, Protocol):
    """Where a run leaves its record (the run folder)."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def write_rollouts(self, step: int, traces: Sequence[ScoredTrace]) -> Path: ...

    def write_evaluation(self, name: str, records: Sequence[EvalRecord]) -> Path: ...

    def has_evaluation(self, name: str) -> bool: ...

    def evaluation_metrics(self, name: str) -> Mapping[str, float]: ...


class Watcher(Protocol):
    """Who is told as the run goes on (console, Weights & Biases)."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None: ...


class StopRequested(MRPOError):
    """The user asked the run to end; the step in hand is given up."""


@dataclass(kw_only=True)
class Controller:
    """One training run. Holds the order of things and nothing else."""

    config: Config
    train: Sequence[Example]
    test: Sequence[Example]
    collector: Collector
    learner: Learner
    recorder: Recorder
    watchers: Sequence[Watcher]
    stop: asyncio.Event
    step: int = 0  # optimizer steps done; also the policy version
    judge_metrics: Callable[[], Mapping[str, float]] = dict  # what the judge's pool measured since the last step
    faults: FaultLog = field(default_factory=lambda: FaultLog(None))
    span: Callable[[str], AbstractContextManager[object]] = nullcontext  # around each stage, for a timeline
    queue_metrics: Callable[[], Mapping[str, float]] = dict  # what was seen of queues since the last step
    observe: Callable[[Mapping[str, Sequence[float]]], object] = dict  # told of single events of a step, by metric
    progress: Callable[[int], object] = int  # told from which step the run goes on, now and after a rewind
    saves_end: bool = True  # False: nobody goes on with what this run learns
    _published: Mapping[str, float] | None = None  # what the step's weights took on their way
    _probe: ScoreSample | None = None
    _start_step: int = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    recovery: Recovery = field(init=False)
    skipped: SkippedSteps = field(init=False)

    def __post_init__(self) -> None:
        self._start_step = self.step
        self.checkpoints = Checkpoints(
            learner=self.learner,
            recorder=self.recorder,
            config=self.config.checkpoint,
            faults=self.faults,
            step=self.step or None,  # it began from there
        )
        self.recovery = Recovery(
            learner=self.learner,
            recorder=self.recorder,
            checkpoints=self.checkpoints,
            faults=self.faults,
            max_restarts=self.config.watchdog.max_restarts,
            # On a GPU that they share, the learner needs more room to load a model than to hold one.
            make_room=self.collector.rollout.sleep,
        )
        self.skipped = SkippedSteps(recorder=self.recorder, faults=self.faults)

    async def run(self) -> None:
        """Gate, evaluate, train to the end, evaluate, save. Whatever ends it early, the steps done are in a checkpoint.

        Raises:
            StopRequested: `stop` was set.
            ParityError: learner and engine disagree.
            JudgeUnavailableError: too many judgements of a step failed.
            JudgeBudgetError: the judge may not be paid any more.
            EngineError: no engine is left, and none comes back.
            WeightSyncError: the new weights did not arrive.
            NonFiniteError: the learner refused two updates in a row; resume goes on from the newest checkpoint.
            LearnerLostError: it was lost again and again, and got no further.
        """
        async with self.recovery.steps_kept(self._keep_steps):
            await self._run()

    async def _keep_steps(self, error: MRPOError) -> None:
        if self.recorder.step != self.step:  # it could not be written down, and is done again from the one before
            await self.checkpoints.settle()
        elif self.step > self._start_step or not isinstance(error, ParityError):
            await self.finish_saving()

    async def _run(self) -> None:
        """To the end, however often the learner is lost on the way."""
        while True:
            try:
                return await self._go_on()
            except LearnerLostError as error:
                with self.span("recover"):
                    self.step = await self._until_stopped(self.recovery.start_again(error, self.step))

    async def _go_on(self) -> None:
        """From the steps done; what is on record already is not done again."""
        config = self.config
        self.progress(self.step)
        await self.sync()
        self.recovery.mended()
        if self._probe is None:
            await self.parity_gate()
        if config.eval.before and self.step == 0 and not self.recorder.has_evaluation("before"):
            await self.evaluate("before", self.test)
        if self._is_evaluated_on_the_way:  # the earlier part of the run may have ended before it could
            name = f"step_{self.step}"
            if self.recorder.has_evaluation(name):
                await self._keep_best(self.recorder.evaluation_metrics(name))
            else:
                await self.evaluate_slice()
        while self.step < config.num_steps:
            await self.train_step()
            every = config.checkpoint.every_steps
            if every and self.step % every == 0 and self.step < config.num_steps:
                await self.save()
            if self._is_evaluated_on_the_way:
                await self.evaluate_slice()
        await self.finish_saving()
        if config.eval.after:
            records = await self.evaluate("after", self.test)
            if config.eval.every_steps:
                await self._keep_best(evaluation_metrics(records[: config.eval.num_periodic]))
                await self.finish_saving()

    @property
    def _is_evaluated_on_the_way(self) -> bool:
        config = self.config
        is_final = config.eval.after and self.step == config.num_steps  # "after" then says the same
        every = config.eval.every_steps
        return bool(every) and self.step > 0 and self.step % every == 0 and not is_final

    async def train_step(self) -> None:
        """One optimizer step."""
        config, started_s = self.config, time.time()
        prompts = prompts_of_step(
            self.train,
            self.step,
            prompts_per_step=config.rollout.prompts_per_step,
            seed=config.seed,
            shuffle=config.data.shuffle,
        )
        requests = requests_of_step(prompts, self.step, rollout=config.rollout, seed=config.seed)
        with self.span("rollout"):
            traces = await self._until_stopped(self.collector.collect(prompts, requests, policy_version=self.step))
        require_budget(traces)
        with self.span("score"):
            noisy = add_judge_noise(traces, probability=config.judge.noise, seed=config.seed, step=self.step)
            batch = self.score(noisy.traces)
            samples = batch.train_samples()
        stats, sync_s = None, 0.0
        self._published = None
        if samples:
            with self.span("learn"):
                await self._until_stopped(self.collector.rollout.sleep())
                stats = await self._learn(batch)
        self.step += 1
        try:
            if samples:
                sync_s = await self.sync()
            else:
                await self.collector.rollout.set_policy_version(self.step)
        finally:
            # The update is made: the step is on record even where the engines did not get it.
            self._record_step(batch, stats, noisy, started_s=started_s, sync_s=sync_s)

    async def _learn(self, batch: ScoredBatch) -> LearnStats | None:
        """None: the learner refused the update, and the step is skipped."""
        try:
            stats = await self.learner.step(batch.train_samples(), progress=self.step / self.config.num_steps)
        except NonFiniteError as error:
            self.skipped.skip(error, self.step + 1, batch.traces)
            return None
        self.skipped.applied()
        return stats

    def _record_step(
        self, batch: ScoredBatch, stats: LearnStats | None, noisy: NoisyTraces, *, started_s: float, sync_s: float
    ) -> None:
        metrics = (
            noisy.metrics()
            | dict(self.judge_metrics())
            | dict(self.queue_metrics())
            | self.faults.take_metrics()
            | self.checkpoints.take_metrics()
            | sync_metrics(self._published)
            | step_metrics(
                batch.traces,
                stats,
                threshold=self.config.algorithm.threshold,
                policy_version=self.step - 1,
                started_s=started_s,
                sync_s=sync_s,
                step_s=time.time() - started_s,
            )
        )
        self.recorder.write_rollouts(self.step, batch.traces)
        self.recorder.log_metrics(self.step, metrics)
        self.observe(step_distributions(batch.traces))
        for watcher in self.watchers:
            watcher.step(self.step, metrics)

    def score(self, traces: Sequence[Trace]) -> ScoredBatch:
        """Rewards and token advantages; refuses a step in which the judge was mostly out.

        Raises:
            JudgeUnavailableError: the share of completions without a ruling is above `judge.max_failure_share`.
        """
        config = self.config
        num_judged, failures = judge_failures(traces, config.algorithm, config.reward)
        if num_judged and len(failures) / num_judged > config.judge.max_failure_share:
            reasons = ", ".join(sorted({f"{failure.reason}: {failure.detail}" for failure in failures})[:3])
            raise JudgeUnavailableError(
                f"the judge failed on {len(failures)} of {num_judged} completions of step {self.step + 1}, above "
                f"judge.max_failure_share={config.judge.max_failure_share:g} ({reasons}); mend the judge, then "
                "go on with resume=<this run>"
            )
        return score_group_batch(
            traces,
            group_size=config.rollout.group_size,
            algorithm=config.algorithm,
            reward=config.reward,
            on_failure=config.judge.on_failure,
        )

    async def sync(self) -> float:
        """Send the learner's weights to the engines and prove on the probe that they arrived. Returns seconds."""
        started = time.perf_counter()
        with self.span("sync"):
            await self.collector.rollout.wake_up()
            self._published = await self._publish()
            await self.collector.rollout.set_policy_version(self.step)
            if self._probe is not None:
                result = await self._compare(self._probe)
                require_parity(result, bound=self.config.parity.probe_max_diff, setting="parity.probe_max_diff")
        return time.perf_counter() - started

    async def _publish(self) -> Mapping[str, float]:
        """Repeated with those that are left where an engine is lost on the way."""
        rollout = self.collector.rollout
        while True:
            receivers = await self._until_stopped(rollout.receivers())
            try:
                return await self.learner.publish(receivers)
            except ReceiverLostError as error:
                if not await rollout.lost_receivers():
                    raise
                logger.warning("the weights are sent again, because an engine was lost on the way: %s", error)

    async def parity_gate(self) -> ParityResult:
        """Compare log-probs of freshly sampled completions with images; keeps one of them as the probe."""
        parity = self.config.parity
        examples = {example.id: example for example in self.train[: parity.num_completions]}
        requests = requests_of_step(examples, 0, rollout=self.config.rollout, seed=self.config.seed)
        requests = [request for request in requests if request.sample_index == 0]
        samples: list[ScoreSample] = []
        engine: list[list[float]] = []
        async for completion in self.collector.rollout.generate(requests):
            samples.append(
                ScoreSample(
                    key=completion.key,
                    image=examples[completion.prompt_id].image,
                    prompt_token_ids=completion.prompt_token_ids,
                    completion_token_ids=completion.completion_token_ids,
                )
            )
            engine.append(completion.rollout_logprobs)
        result = compare_logprobs(samples, await self.learner.score(samples), engine)
        require_parity(result, bound=parity.max_mean_diff, setting="parity.max_mean_diff")
        self._probe = min((s for s in samples if s.completion_token_ids), key=lambda sample: sample.key)
        logger.info(
            "parity gate: learner and engine differ by %.1e nats a token on average (%d tokens, bound %g)",
            result.mean_diff,
            result.num_tokens,
            parity.max_mean_diff,
        )
        return result

    async def _compare(self, probe: ScoreSample) -> ParityResult:
        """The learner's log-probs with those of every engine."""
        engines = self.collector.rollout.probe(probe, bound=self.config.parity.probe_max_diff)
        (ours,), theirs = await asyncio.gather(self.learner.score([probe]), engines)
        return compare_logprobs([probe] * len(theirs), [ours] * len(theirs), theirs)

    async def evaluate_slice(self) -> None:
        """Evaluate during training, on a part of the questions; the best step's checkpoint is kept."""
        records = await self.evaluate(f"step_{self.step}", self.test[: self.config.eval.num_periodic])
        await self._keep_best(evaluation_metrics(records))

    async def _keep_best(self, metrics: Mapping[str, float]) -> None:
        metric, best = self.config.checkpoint.best, self.checkpoints.best
        value = metrics.get(f"eval/{metric}")  # absent where nothing was judged
        if value is not None and (best is None or best.is_beaten_by(metric, value)):
            await self.save(BestStep(step=self.step, metric=metric, value=value))

    async def evaluate(self, name: str, questions: Sequence[Example]) -> list[EvalRecord]:
        """Greedy completions of held-out questions, their accuracy and their failure cascades, put on record."""
        config = self.config
        examples = {example.id: example for example in questions}
        requests = greedy_requests(examples, max_new_tokens=config.rollout.max_new_tokens)
        work = self.collector.collect(examples, requests, policy_version=self.step, judge_steps=config.eval.judge)
        with self.span("evaluate"):
            traces = await self._until_stopped(work)
        return put_on_record(name, traces, config, step=self.step, recorder=self.recorder, watchers=self.watchers)

    async def save(self, best: BestStep | None = None) -> None:
        """Take a checkpoint of the steps done, unless there is one; it is written while training goes on."""
        with self.span("checkpoint"):
            await self.checkpoints.save(self.step, best=best)

    async def finish_saving(self) -> None:
        """A checkpoint of the steps done, on disk."""
        if self.saves_end:
            with self.span("checkpoint"):
                await self.checkpoints.finish(self.step)

    async def _until_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, but give it up as soon as a stop is asked for."""
        return await unless_set(self.stop, work, StopRequested(f"stopped after {self.step} steps"))
