"""The answers of a training step, scored together: a `mrpo.protocols.AnswerScorer` for every `reward.answer.kind`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mrpo.choices import AnswerKind, EncoderPlacement
from mrpo.config import RewardConfig
from mrpo.errors import MRPOError
from mrpo.protocols import AnswerScorer
from mrpo.rewards.answer import (
    CACHE_SIZE,
    AnswerReward,
    Overlap,
    Rated,
    exact_reward,
    mixed_reward,
    warn_without_encoder,
)
from mrpo.rewards.bertscore import BertScoreEncoder

Pair = tuple[str, str]  # (answer, gold)
Similarity = Callable[[Sequence[Pair]], Awaitable[list[float]]]  # BERTScore F1 of pairs, in their order


def needs_encoder(config: RewardConfig) -> bool:
    """Whether answers are compared by an encoder, wherever it is placed."""
    return config.answer.kind == AnswerKind.MIXED and config.answer.bertscore.model is not None


def local_similarity(config: RewardConfig) -> Similarity | None:
    """The encoder in this process, loaded; None where there is none or it belongs into an actor.

    Raises:
        ConfigError: it cannot be loaded.
    """
    bertscore = config.answer.bertscore
    if not needs_encoder(config) or bertscore.placement != EncoderPlacement.IN_PROCESS:
        return None
    encoder = BertScoreEncoder(bertscore)
    encoder.load()

    async def similarity(pairs: Sequence[Pair]) -> list[float]:
        return await asyncio.to_thread(encoder.f1, pairs)

    return similarity


def build_answer_scorer(config: RewardConfig, similarity: Similarity | None) -> AnswerScorer:
    """The configured scorer.

    Args:
        config: its `answer.kind` says how.
        similarity: the encoder that `needs_encoder` asks for; without one its weight goes to the other two, loudly.
    """
    if config.answer.kind == AnswerKind.JUDGE:
        return NoLocalScorer()
    if config.answer.kind == AnswerKind.EXACT:
        return LocalScorer(exact_reward)
    assert (similarity is not None) == needs_encoder(config)
    if similarity is None:
        warn_without_encoder()
    return MixedScorer(similarity)


class LocalScorer:
    """Scores pair by pair where it is called."""

    def __init__(self, reward: AnswerReward) -> None:
        self._reward = reward

    async def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Rewards in [0, 1] of (answer, gold) pairs."""
        return [self._reward(answer, gold) for answer, gold in pairs]


class NoLocalScorer:
    """Stands where the judge rates the answers, so that none may get here."""

    async def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Nothing for nothing.

        Raises:
            MRPOError: there is an answer.
        """
        if pairs:
            raise MRPOError(f"reward.answer.kind=judge, and {len(pairs)} answers came to the local scorer")
        return []


class MixedScorer:
    """Equality, symbolic or of words, is 1; the rest earn their overlap, compared by the encoder in one call.

    Pairs are remembered, within a call and across calls. Nothing slow runs in the event loop.
    """

    def __init__(self, similarity: Similarity | None) -> None:
        self._overlap = Overlap()
        self._similarity = similarity
        self._known: dict[Pair, float] = {}  # F1, oldest first

    async def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Rewards in [0, 1] of (answer, gold) pairs."""
        distinct = list(dict.fromkeys(pairs))
        rated = dict(zip(distinct, await asyncio.to_thread(self._rate, distinct), strict=True))
        f1 = await self._compare([pair for pair in distinct if not rated[pair].is_final])
        rewards = {pair: mixed_reward(rated[pair], f1.get(pair)) for pair in distinct}
        return [rewards[pair] for pair in pairs]

    def _rate(self, pairs: Sequence[Pair]) -> list[Rated]:
        return [self._overlap(answer, gold) for answer, gold in pairs]

    async def _compare(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """F1 of distinct pairs; empty without an encoder."""
        if self._similarity is None:
            return {}
        found = {pair: self._known[pair] for pair in pairs if pair in self._known}
        unknown = [pair for pair in pairs if pair not in found]
        if unknown:
            new = dict(zip(unknown, await self._similarity(unknown), strict=True))
            self._known |= new
            found |= new
            for pair in list(self._known)[: max(0, len(self._known) - CACHE_SIZE)]:
                del self._known[pair]
        return found
