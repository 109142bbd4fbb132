"""How right an answer is, in [0, 1]: exact equality, or equality with partial credit for overlap (algorithm §2)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mrpo.choices import AnswerKind
from mrpo.config import RewardConfig
from mrpo.errors import ConfigError
from mrpo.rewards.bertscore import BertScoreEncoder
from mrpo.rewards.laterality import laterality_conflict
from mrpo.rewards.normalise import OUTER_PUNCTUATION, normalise_answer, with_digits
from mrpo.rewards.symbolic import symbolically_equal

log = logging.getLogger(__name__)

AnswerReward = Callable[[str, str], float]  # (answer, gold) → [0, 1]

ROUGE_WEIGHT, BLEU_WEIGHT, BERTSCORE_WEIGHT = 0.25, 0.25, 0.5
CACHE_SIZE = 16_384  # pairs: a policy repeats itself, and the same answer to the same question is scored once
_STEM_CACHE_SIZE = 65_536  # words


def build_answer_reward(config: RewardConfig) -> AnswerReward:
    """The configured reward of one (answer, gold answer) pair; `mrpo.rewards.scorer` does the same for batches.

    Raises:
        ConfigError: `reward.answer.bertscore` names no encoder that can be loaded, or the answers are for a judge.
    """
    if config.answer.kind == AnswerKind.JUDGE:
        raise ConfigError(
            "reward.answer.kind=judge: answers are rated by the judge; give exact or mixed to rate them here"
        )
    if config.answer.kind == AnswerKind.EXACT:
        return exact_reward
    overlap = Overlap()
    bertscore = config.answer.bertscore
    if bertscore.model is None:
        warn_without_encoder()
        return lambda answer, gold: mixed_reward(overlap(answer, gold), None)
    encoder = BertScoreEncoder(bertscore)
    encoder.load()
    f1 = lru_cache(maxsize=CACHE_SIZE)(lambda answer, gold: encoder.f1([(answer, gold)])[0])

    def reward(answer: str, gold: str) -> float:
        rated = overlap(answer, gold)
        return mixed_reward(rated, None if rated.is_final else f1(answer, gold))

    return reward


def exact_reward(answer: str, gold: str) -> float:
    """1 where the answers are equal after normalisation and not empty, else 0."""
    normal = normalise_answer(answer)
    return float(normal != "" and normal == normalise_answer(gold))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """What words alone say about an answer."""

    score: float  # the reward where it is final; else the weighted ROUGE-1 and BLEU-1, at most half of it
    is_final: bool


def mixed_reward(rated: Rated, f1: float | None) -> float:
    """[0, 1]: the weighted sum of ROUGE-1, BLEU-1 and BERTScore F1, unless `rated` is final.

    Args:
        rated: by `Overlap`.
        f1: in [0, 1]; None without an encoder, whose weight the other two share then.
    """
    if rated.is_final:
        return rated.score
    if f1 is None:
        return min(1.0, rated.score / (ROUGE_WEIGHT + BLEU_WEIGHT))
    return min(1.0, rated.score + BERTSCORE_WEIGHT * f1)


def warn_without_encoder() -> None:
    """Say that partial credit is lexical only."""
    log.warning(
        "reward.answer.bertscore.model is not set: its weight of %s goes to ROUGE-1 and BLEU-1, half each",
        BERTSCORE_WEIGHT,
    )


class Overlap:
    """Rates (answer, gold) pairs by their words: equality, symbolic or of words, is 1; the rest earn their overlap.

    ROUGE-1 and BLEU-1 see number words as digits, so that "two lesions" overlaps with "2 large lesions".
    """

    def __init__(self) -> None:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
        from rouge_score.rouge_scorer import RougeScorer

        self._rouge = RougeScorer(["rouge1"], tokenizer=_StemmingTokenizer())
        self._sentence_bleu = sentence_bleu
        self._smoothing = SmoothingFunction().method4
        self._cached = lru_cache(maxsize=CACHE_SIZE)(self._rate)

    def __call__(self, answer: str, gold: str) -> Rated:
        """Final: 1 for equal answers, 0 for an empty answer and for one that names another side than the gold one."""
        return self._cached(answer, gold)

    def _rate(self, answer: str, gold: str) -> Rated:
        if exact_reward(answer, gold):
            return Rated(score=1.0, is_final=True)
        if not answer.strip() or not gold.strip() or laterality_conflict(answer, gold):
            return Rated(score=0.0, is_final=True)
        if symbolically_equal(answer, gold):
            return Rated(score=1.0, is_final=True)
        answer, gold = with_digits(answer), with_digits(gold)
        score = ROUGE_WEIGHT * self._rouge_1(answer, gold) + BLEU_WEIGHT * self._bleu_1(answer, gold)
        return Rated(score=score, is_final=False)

    def _rouge_1(self, answer: str, gold: str) -> float:
        return float(self._rouge.score(gold, answer)["rouge1"].fmeasure)

    def _bleu_1(self, answer: str, gold: str) -> float:
        candidate, reference = _words(answer), _words(gold)
        if not candidate or not reference:
            return 0.0
        return float(self._sentence_bleu([reference], candidate, weights=(1.0,), smoothing_function=self._smoothing))


class _StemmingTokenizer:
    """rouge-score's own tokenizer with its stemmer, which takes most of the time, remembering its words."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer
        from rouge_score.tokenize import tokenize

        self._tokenize = tokenize
        self.stem = lru_cache(maxsize=_STEM_CACHE_SIZE)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = self._tokenize(text, self)
        return tokens


def _words(text: str) -> list[str]:
    """Lower-case words without the punctuation around them."""
    stripped = (word.strip(OUTER_PUNCTUATION) for word in text.lower().split())
    return [word for word in stripped if word]
