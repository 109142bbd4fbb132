"""Hand-written stand-ins behind `mrpo.protocols`: they keep a diary, and share one pair of weights to get wrong.

The "weights" are a counter of updates. Log-probs depend on it, so that a forgotten or failed weight update shows in the
probe exactly as it would with real models.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo.errors import ResourceError
from mrpo.eval.record import EvalRecord
from mrpo.manifest import write_manifest
from mrpo.metrics import evaluation_metrics
from mrpo.phantom.language import Belief, QuestionKind, rule_steps, write_answer, write_steps
from mrpo.rewards.normalise import normalise_answer
from mrpo.run_reading import BestStep, Checkpoint
from mrpo.scoring import ScoredTrace
from mrpo.steps import extract_answer, offsets_from_pieces, split_steps, think_token_counts, token_spans
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    Completion,
    EngineDepth,
    Example,
    FailureReason,
    FinishReason,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    LearnStats,
    RolloutRequest,
    ScoreSample,
    TrainSample,
)

TRUTH = Belief(modality="MRI", organ="kidney", side="right", half="lower", num_lesions=2, marker=False)


def phantom_example(
    number: int, *, kind: QuestionKind = QuestionKind.SIDE, truth: Belief = TRUTH, rationale: bool = True
) -> Example:
    """Question `number` about a scan of which only the facts exist."""
    return Example(
        id=f"q{number:03d}",
        image=f"/nowhere/{number}.png",
        question=kind.value,
        answer=write_answer(kind, truth),
        rationale=" ".join(write_steps(truth)) if rationale else None,
        dataset="phantom",
        split="train",
        license="generated",
    )


def completion_of(request: RolloutRequest, text: str, *, policy_version: int, weights: int) -> Completion:
    """What an engine makes of a text: word-sized tokens, and everything the real code finds in it."""
    pieces = re.findall(r"<[^<>]*>|\s*[^\s<]+|\s+|<", text)
    token_ids = [zlib.crc32(piece.encode()) % 50_000 for piece in pieces]
    decoded, offsets = offsets_from_pieces([piece.encode() for piece in pieces])
    assert decoded == text
    steps = split_steps(text, offsets=offsets)
    think_tokens, step_tokens = think_token_counts(text, steps, offsets, "think")
    now = time.time()
    return Completion(
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_token_ids=[1, 2, 3],
        completion_token_ids=token_ids,
        rollout_logprobs=logprobs_of(token_ids, weights),
        text=text,
        steps=steps,
        spans=token_spans(steps, offsets),
        answer=extract_answer(text),
        think_tokens=think_tokens,
        step_tokens=step_tokens,
        finish_reason=FinishReason.STOP,
        policy_version=policy_version,
        started_s=now,
        ended_s=now,
    )


def logprobs_of(token_ids: Sequence[int], weights: int) -> list[float]:
    """The log-probs of both fakes; they move with every update by ten times what the probe allows."""
    return [-0.1 * (1 + token % 7) - 0.1 * weights for token in token_ids]


@dataclass
class FakeRollout:
    """Writes the traces of a table; which one of a question's follows from the request's seed.

    What it is told to do midway it does in training steps only, whose prompt ids carry an epoch.
    """

    table: Mapping[str, Sequence[str]]  # example id → texts
    diary: list[str] = field(default_factory=list)
    arrival_seed: int | None = None  # None: in the order of the requests
    on_ended: Callable[[int], None] = lambda num_ended: None  # with the number of completions handed over so far
    before_last: asyncio.Event | None = None  # awaited (for at most 5 s) before the last completion ends
    fail_after: int | None = None  # completions after which the engine dies
    score_offset: float = 0.0  # nats by which `score` is wrong
    weights: int = 0  # what the engine really holds
    policy_version: int = 0
    asked: list[list[RolloutRequest]] = field(default_factory=list)  # per call of `generate`
    open_streams: int = 0

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Completion]:
        self.asked.append(list(requests))
        order = list(requests)
        training = any("@" in request.prompt_id for request in requests)
        if self.arrival_seed is not None:
            random.Random(self.arrival_seed + len(self.asked)).shuffle(order)
        self.open_streams += 1
        try:
            for number, request in enumerate(order):
                await asyncio.sleep(0)
                if training and self.before_last is not None and number == len(order) - 1:
                    await asyncio.wait_for(self.before_last.wait(), 5.0)
                if training:
                    self.on_ended(number)
                if training and number == self.fail_after:
                    raise ConnectionError("engine died")
                texts = self.table[request.prompt_id.rpartition("@")[0] or request.prompt_id]
                text = texts[request.seed % len(texts)]
                self.diary.append(f"ended {request.key}")
                yield completion_of(request, text, policy_version=self.policy_version, weights=self.weights)
        finally:
            self.open_streams -= 1

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        self.diary.append("engine scores")
        return [
            [value + self.score_offset for value in logprobs_of(sample.completion_token_ids, self.weights)]
            for sample in samples
        ]

    async def probe(self, sample: ScoreSample, *, bound: float) -> list[list[float]]:
        return await self.score([sample])

    async def receivers(self) -> list[FakeRollout]:
        return [self]

    async def lost_receivers(self) -> bool:
        return False

    def depths(self) -> list[EngineDepth]:
        return []

    @property
    def num_waiting(self) -> int:
        return 0

    async def sleep(self) -> None:
        assert not self.open_streams
        self.diary.append("engine sleeps")

    async def wake_up(self) -> None:
        self.diary.append("engine wakes")

    async def set_policy_version(self, version: int) -> None:
        self.diary.append(f"version {version}")
        self.policy_version = version


@dataclass
class FakeJudge:
    """Rules exactly, after `latency_s`; fails where it is told to."""

    diary: list[str] = field(default_factory=list)
    latency_s: float = 0.0
    give_up_s: float = 0.0  # what a cancelled call still takes
    failing: Callable[[JudgeRequest], FailureReason | None] = lambda request: None
    failing_answers: Callable[[AnswerRequest], FailureReason | None] = lambda request: None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[JudgeRequest] = field(default_factory=list)
    answer_calls: list[AnswerRequest] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0

    async def judge(self, request: JudgeRequest) -> Judgement:
        self.calls.append(request)
        started_s = await self._ruling_on(request.key)
        reason = self.failing(request)
        return Judgement(
            key=request.key,
            outcome=JudgeFailure(reason=reason, detail="as told")
            if reason
            else rule_steps(
                request.steps, question=request.question, answer=request.answer, rationale=request.rationale
            ),
            started_s=started_s,
            ended_s=time.time(),
            attempts=1,
        )

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        self.answer_calls.append(request)
        started_s = await self._ruling_on(f"{request.key} answer")
        reason = self.failing_answers(request)
        return AnswerJudgement(
            key=request.key,
            outcome=JudgeFailure(reason=reason, detail="as told")
            if reason
            else normalise_answer(request.generated) == normalise_answer(request.answer),
            started_s=started_s,
            ended_s=time.time(),
            attempts=1,
        )

    async def _ruling_on(self, what: str) -> float:
        """Take a while; returns when it began."""
        self.diary.append(f"judging {what}")
        self.started.set()
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        started_s = time.time()
        try:
            await asyncio.sleep(self.latency_s)
        except asyncio.CancelledError:
            await asyncio.sleep(self.give_up_s)
            raise
        finally:
            self.in_flight -= 1
        return started_s


@dataclass
class FakeLearner:
    """Counts its updates and keeps what it was given."""

    engine: FakeRollout
    diary: list[str] = field(default_factory=list)
    score_offsets: Mapping[int, float] = field(default_factory=dict)  # token id → nats
    lost_updates: frozenset[int] = frozenset()  # counters of weights that never arrive at the engine
    weights: int = 0
    copied: int = 0  # the weights of the newest snapshot
    write_s: float = 0.0  # seconds that a write takes
    full_disk: set[int] = field(default_factory=set)  # counters of weights that cannot be written
    batches: list[list[TrainSample]] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    on_call: Callable[[str], None] = lambda method: None  # may raise; nothing has been done by then
    restarts: int = 0

    async def restart(self) -> None:
        self.on_call("restart")
        self.restarts += 1
        self.diary.append("restarted")
        self.weights = 0

    async def step(self, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
        self.on_call("step")
        await asyncio.sleep(0)
        self.batches.append(list(samples))
        self.progress.append(progress)
        self.weights += 1
        self.diary.append(f"learned {self.weights}")
        num_tokens = sum(len(sample.completion_token_ids) for sample in samples)
        return LearnStats(
            loss=0.5,
            kl=0.0,
            clip_share=0.0,
            entropy=1.0,
            grad_norm=1.0,
            lr=1e-6,
            num_tokens=num_tokens,
            num_micro_batches=1,
            seconds=0.01,
        )

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        self.on_call("score")
        self.diary.append("learner scores")
        return [
            [
                value + self.score_offsets.get(token, 0.0)
                for token, value in zip(
                    sample.completion_token_ids,
                    logprobs_of(sample.completion_token_ids, self.weights),
                    strict=True,
                )
            ]
            for sample in samples
        ]

    async def publish(self, receivers: Sequence[Any]) -> Mapping[str, float]:
        self.on_call("publish")
        self.diary.append("published")
        if self.weights not in self.lost_updates:
            self.engine.weights = self.weights
        return {"bytes": 8.0, "buckets": 1.0, "seconds": 0.0}

    async def save(self, folder: str) -> None:
        self.on_call("save")
        self.diary.append(f"saved {self.weights}")
        Path(folder, "weights.json").write_text(json.dumps(self.weights))
        write_manifest(Path(folder))

    async def snapshot(self) -> None:
        self.on_call("snapshot")
        self.copied = self.weights

    async def write(self, folder: str) -> None:
        self.on_call("write")
        await asyncio.sleep(self.write_s)
        self.diary.append(f"saved {self.copied}")
        if self.copied in self.full_disk:
            raise ResourceError("the disk is full")
        Path(folder, "weights.json").write_text(json.dumps(self.copied))
        write_manifest(Path(folder))

    async def load(self, folder: str) -> None:
        self.on_call("load")
        self.weights = json.loads(Path(folder, "weights.json").read_text())


@dataclass
class FakeRecorder:
    """Keeps a run's record in memory; checkpoints go to `folder`."""

    folder: Path
    diary: list[str] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    rollouts: dict[int, list[ScoredTrace]] = field(default_factory=dict)
    evaluations: dict[str, list[EvalRecord]] = field(default_factory=dict)
    nonfinite: dict[int, list[ScoredTrace]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    keep_last: set[int | None] = field(default_factory=set)
    best: BestStep | None = None

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics[step] = dict(metrics)

    @property
    def step(self) -> int:
        return max(self.metrics, default=0)

    def write_rollouts(self, step: int, traces: Sequence[ScoredTrace]) -> Path:
        self.rollouts[step] = list(traces)
        return self.folder / f"step_{step}"

    def write_nonfinite(self, step: int, traces: Sequence[ScoredTrace]) -> Path:
        self.nonfinite[step] = list(traces)
        return self.folder / "nonfinite" / f"step_{step:05d}.parquet"

    def is_skipped(self, step: int) -> bool:
        return step in self.skipped

    def mark_skipped(self, step: int) -> None:
        self.skipped.append(step)

    def write_evaluation(self, name: str, records: Sequence[EvalRecord]) -> Path:
        self.diary.append(f"evaluated {name}")
        self.evaluations[name] = list(records)
        return self.folder / name

    def has_evaluation(self, name: str) -> bool:
        return name in self.evaluations

    def evaluation_metrics(self, name: str) -> Mapping[str, float]:
        return evaluation_metrics(self.evaluations[name])

    def mark_best(self, best: BestStep) -> None:
        self.best = best

    @contextmanager
    def checkpoint(self, step: int, *, keep_last: int | None = None) -> Iterator[Path]:
        path = self.folder / f"step_{step}"
        path.mkdir(parents=True, exist_ok=True)
        yield path
        self.diary.append(f"checkpoint {step}")
        self.checkpoints.append(step)
        self.keep_last.add(keep_last)

    def latest_good_checkpoint(
        self, on_damaged: Callable[[Checkpoint, str], None], given_up: threading.Event
    ) -> Checkpoint | None:
        newest = max((step for step in self.checkpoints), default=None)
        return None if newest is None else Checkpoint(step=newest, path=self.folder / f"step_{newest}")

    def rewind(self, step: int) -> None:
        self.diary.append(f"rewound to {step}")
        self.metrics = {number: metrics for number, metrics in self.metrics.items() if number <= step}
        self.rollouts = {number: traces for number, traces in self.rollouts.items() if number <= step}


@dataclass
class FakeWatcher:
    """Keeps what it is told; may act on a step."""

    on_step: Callable[[int], None] = lambda step: None
    steps: list[int] = field(default_factory=list)
    evaluations: list[tuple[str, int, Mapping[str, float]]] = field(default_factory=list)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)
        self.on_step(step)

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluations.append((name, step, metrics))
