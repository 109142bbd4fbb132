"""Learner and engines as the controller of a profiled run sees them: calls of recorded steps are traced."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from mrpo.profile.recording import ROLLOUT, Recording
from mrpo.types import Completion, LearnStats, RolloutRequest, ScoreSample, TrainSample


class TracedLearner:
    """A `mrpo.protocols.Learner`; what it does not name goes to the learner as it is."""

    def __init__(self, learner: Any, recording: Recording, *, stacks: bool) -> None:
        self._learner = learner
        self._recording = recording
        self._stacks = stacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    async def step(self, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
        """See `mrpo.protocols.Learner`."""
        async with self._traced("learn"):
            stats: LearnStats = await self._learner.step(samples, progress=progress)
            return stats

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """See `mrpo.protocols.Learner`."""
        async with self._traced("score"):
            scores: list[list[float]] = await self._learner.score(samples)
            return scores

    async def publish(self, receivers: Sequence[Any]) -> Mapping[str, float]:
        """See `mrpo.protocols.Learner`."""
        async with self._traced("sync"):
            told: Mapping[str, float] = await self._learner.publish(receivers)
            return told

    @asynccontextmanager
    async def _traced(self, stage: str) -> AsyncIterator[None]:
        if not self._recording.is_on:
            yield
            return
        await self._learner.start_trace(stacks=self._stacks)
        with _timed(self._recording, stage):
            yield
        await self._recording.keep("learner", stage, self._learner.stop_trace())


class TracedRollout:
    """A `mrpo.protocols.RolloutPool`; what it does not name goes to the pool as it is."""

    def __init__(self, rollout: Any, recording: Recording) -> None:
        self._rollout = rollout
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollout, name)

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Completion]:
        """See `mrpo.protocols.RolloutPool`."""
        if not self._recording.is_on:
            async for completion in self._rollout.generate(requests):
                yield completion
            return
        await self._rollout.start_trace()
        with _timed(self._recording, ROLLOUT):
            async for completion in self._rollout.generate(requests):
                yield completion
        await self._recording.keep("engine", ROLLOUT, self._rollout.stop_trace())


@contextmanager
def _timed(recording: Recording, stage: str) -> Iterator[None]:
    started_s, started = time.time(), time.perf_counter()
    yield
    recording.called(stage, started_s, time.perf_counter() - started)
