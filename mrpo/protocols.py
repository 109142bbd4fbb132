"""What the controller asks of the other parts. Real ones live in rollout/, judge/ and learner/; tests bring fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    Completion,
    EngineDepth,
    JudgeDepths,
    Judgement,
    JudgeRequest,
    LearnStats,
    RolloutRequest,
    ScoreSample,
    TrainSample,
)


class RolloutPool(Protocol):
    """Samples completions with the newest weights it received."""

    def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Completion]:
        """Stream completions as they end, in any order; every request yields exactly one."""
        ...

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """The engine's raw log-probs of given completion tokens, per sample [T] nats (prompt log-probs)."""
        ...

    async def probe(self, sample: ScoreSample, *, bound: float) -> list[list[float]]:
        """As `score` of one sample, by every engine that serves: [E][T] nats.

        An engine that joins under the same weights must agree within `bound` (nats a token, on average) to serve.
        """
        ...

    async def sleep(self) -> None:
        """Called before the learner works: GPUs that it shares are its own until `wake_up`. No request may run."""
        ...

    async def wake_up(self) -> None:
        """Called before weights are sent; `set_policy_version` completes it. Where nothing sleeps, nothing happens."""
        ...

    async def receivers(self) -> list[Any]:
        """Handles of the engines that the weights must reach now, dead and stuck ones left out; waits for one at least.

        Engines that join later get the weights then.
        """
        ...

    async def lost_receivers(self) -> bool:
        """After a publish that lost an engine: whether one that `receivers` named last is gone, or was left inside it.

        The publish is then repeated with the others; one that was left inside is lost.
        """
        ...

    async def set_policy_version(self, version: int) -> None:
        """Called after a finished weight update: reset prefix, multimodal and encoder caches, stamp completions."""
        ...

    def depths(self) -> list[EngineDepth]:
        """What each engine is doing now, as far as the pool knows; cheap."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that no engine has; cheap."""
        ...


class JudgePool(Protocol):
    """Rules on the steps of one completion, and on its answer."""

    async def judge(self, request: JudgeRequest) -> Judgement:
        """One ruling or one `JudgeFailure`; never raises for a judge's fault."""
        ...

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        """Whether an answer is correct, or one `JudgeFailure`; never raises for a judge's fault."""
        ...


class MeteredJudge(JudgePool, Protocol):
    """A judge that tells what it measured."""

    def take_metrics(self) -> dict[str, float]:
        """Since this was asked last; what did not happen is left out."""
        ...

    def depths(self) -> JudgeDepths:
        """Its queues as they are now; cheap."""
        ...

    def status(self) -> str | None:
        """In a line, what calls wait for; None while they are served."""
        ...


class AnswerScorer(Protocol):
    """Scores answers against gold answers without a judge."""

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Rewards in [0, 1] of (answer, gold) pairs, in their order."""
        ...


class Learner(Protocol):
    """Owns the weights being trained."""

    async def step(self, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
        """One optimizer step. `progress` in [0, 1) is the share of the run done, for the learning-rate schedule."""
        ...

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """Log-probs of the given completion tokens under the current weights, per sample [T] nats."""
        ...

    async def publish(self, receivers: Sequence[Any]) -> Mapping[str, float]:
        """Send the current weights to these engines (start → buckets → finish). Returns bytes, buckets and seconds.

        Raises:
            WeightSyncError: an engine refused them, or none is left.
            LearnerLostError: they were not sent in time, or a rank died.
        """
        ...

    async def save(self, folder: str) -> None:
        """Write everything needed to resume, `hf/` and `manifest.json` into an existing folder."""
        ...

    async def snapshot(self) -> None:
        """Copy what `save` would write to main memory."""
        ...

    async def write(self, folder: str) -> None:
        """Write the newest snapshot as `save` does; other calls may be made meanwhile."""
        ...

    async def restart(self) -> None:
        """End what is left of its ranks and start new ones, with the weights the run began with; then `load`."""
        ...

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        ...
