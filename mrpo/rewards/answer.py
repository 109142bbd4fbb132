"""How right an answer is, in [0, 1]: exact equality, or equality with partial credit for overlap (algorithm §2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from mrpo.choices import AnswerKind
from mrpo.config import RewardConfig
from mrpo.errors import ConfigError
from mrpo.rewards.laterality import laterality_conflict
from mrpo.rewards.normalise import OUTER_PUNCTUATION, normalise_answer
from mrpo.rewards.symbolic import symbolically_equal

log = logging.getLogger(__name__)

AnswerReward = Callable[[str, str], float]  # (answer, gold) → [0, 1]

ROUGE_WEIGHT, BLEU_WEIGHT, BERTSCORE_WEIGHT = 0.25, 0.25, 0.5
_NUM_LAYERS = 12  # of the encoder: the layer whose vectors are compared, where it has so many
_CACHE_SIZE = 65_536  # a policy repeats itself: the same answer to the same question is scored once


def build_answer_reward(config: RewardConfig) -> AnswerReward:
    """The configured scorer; call it with (text of the answer, gold answer).

    Raises:
        ConfigError: `reward.answer.bertscore.model` cannot be loaded.
    """
    if config.answer.kind == AnswerKind.EXACT:
        return exact_reward
    if config.answer.bertscore.model is None:
        log.warning(
            "reward.answer.bertscore.model is not set: its weight of %s goes to ROUGE-1 and BLEU-1, half each",
            BERTSCORE_WEIGHT,
        )
        return lru_cache(maxsize=_CACHE_SIZE)(MixedReward(None))
    return lru_cache(maxsize=_CACHE_SIZE)(MixedReward(load_bertscore(config.answer.bertscore.model)))


class LocalScorer:
    """A `mrpo.protocols.AnswerScorer` that scores pair by pair in this process."""

    def __init__(self, reward: AnswerReward) -> None:
        self._reward = reward

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Rewards in [0, 1] of (answer, gold) pairs."""
        return [self._reward(answer, gold) for answer, gold in pairs]


def exact_reward(answer: str, gold: str) -> float:
    """1 where the answers are equal after normalisation and not empty, else 0."""
    normal = normalise_answer(answer)
    return float(normal != "" and normal == normalise_answer(gold))


class MixedReward:
    """Equality, symbolic or of words, is 1; anything else earns its overlap with the gold answer."""

    def __init__(self, bertscore: AnswerReward | None) -> None:
        """`bertscore`: (answer, gold) → F1, neither text empty; None gives its weight to the other two."""
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
        from rouge_score.rouge_scorer import RougeScorer

        self._bertscore = bertscore
        self._rouge = RougeScorer(["rouge1"], use_stemmer=True)
        self._sentence_bleu = sentence_bleu
        self._smoothing = SmoothingFunction().method4

    def __call__(self, answer: str, gold: str) -> float:
        """[0, 1]; 0 for an empty answer and for one that names another side than the gold answer."""
        if not answer.strip() or laterality_conflict(answer, gold):
            return 0.0
        if exact_reward(answer, gold) or symbolically_equal(answer, gold):
            return 1.0
        lexical = ROUGE_WEIGHT * self._rouge_1(answer, gold) + BLEU_WEIGHT * self._bleu_1(answer, gold)
        if self._bertscore is None or not gold.strip():
            score = lexical / (ROUGE_WEIGHT + BLEU_WEIGHT)
        else:
            score = lexical + BERTSCORE_WEIGHT * self._bertscore(answer, gold)
        return min(1.0, max(0.0, score))

    def _rouge_1(self, answer: str, gold: str) -> float:
        return float(self._rouge.score(gold, answer)["rouge1"].fmeasure)

    def _bleu_1(self, answer: str, gold: str) -> float:
        candidate, reference = _tokens(answer), _tokens(gold)
        if not candidate or not reference:
            return 0.0
        return float(self._sentence_bleu([reference], candidate, weights=(1.0,), smoothing_function=self._smoothing))


def _tokens(text: str) -> list[str]:
    """Lower-case words without the punctuation around them."""
    stripped = (word.strip(OUTER_PUNCTUATION) for word in text.lower().split())
    return [word for word in stripped if word]


def load_bertscore(model: str) -> AnswerReward:
    """BERTScore F1 with an encoder from a folder or hub id; no baseline rescaling, no idf.

    Raises:
        ConfigError: the encoder is not there or is none.
    """
    from bert_score import BERTScorer
    from transformers import AutoConfig

    try:
        num_layers = min(_NUM_LAYERS, int(AutoConfig.from_pretrained(model).num_hidden_layers))
        scorer: Any = BERTScorer(model_type=model, num_layers=num_layers, idf=False, rescale_with_baseline=False)
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"reward.answer.bertscore.model={model!r} cannot be loaded ({reason}); give the folder or hub id of a "
            "BERT-like encoder, or null to score by ROUGE and BLEU alone"
        ) from None

    def f1(answer: str, gold: str) -> float:
        return float(scorer.score([answer], [gold])[2][0])

    return f1
