"""Completions a second on one core through everything between the engine and the learner's batch.

- pure: bytes to text and offsets, steps, spans, answer, token counts; group advantages; shaped token advantages.
- with library rewards: also the answer's reward (math-verify, ROUGE-1, BLEU-1; no BERTScore), the process and the
  step-count reward. No pair of answer and gold answer occurs twice, so that no cache helps.

Letters: N completions, G completions of one prompt, T tokens of a completion, K steps.
"""

from __future__ import annotations

import gc
import itertools
import logging
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mrpo.advantages import gdpo_advantages, shape_step_advantages
from mrpo.choices import AnswerKind
from mrpo.config import AnswerConfig, RewardConfig
from mrpo.rewards import AnswerReward, build_answer_reward, process_reward, step_count_reward
from mrpo.steps import offsets_from_pieces, segment

logger = logging.getLogger("bench")
GROUP_SIZE = 8
NUM_GROUPS = 32
NUM_TOKENS = 400
REPEATS = 7
WEIGHTS = (1.0, 1.0, 1.0)  # answer, process, step count


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What the engine gives, and what judge and data set add to it."""

    pieces: list[bytes]  # [T]
    gold: str
    verdicts: list[bool]  # at least K


def main() -> int:
    """Log both rates."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    log_rates()
    return 0


def log_rates() -> None:
    """Measure both paths and log a line each."""
    pure, whole = measure()
    logger.info("%-40s %.0f", "pure path, completions/s on one core", pure)
    logger.info("%-40s %.0f", "  with library rewards, no BERTScore", whole)


def measure(repeats: int = REPEATS) -> tuple[float, float]:
    """Completions per second of process time, the best of several rounds: (pure path, with library rewards).

    Each round has new texts and answers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = [make_rollouts(NUM_GROUPS * GROUP_SIZE, seed) for seed in range(repeats)]
        reward = build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED)))
        reward("two nodules", "3 nodules")  # imports and parser tables
        return _best_rate(batches, None), _best_rate(batches, reward)
    finally:
        torch.set_num_threads(threads)


def _best_rate(batches: Sequence[Sequence[Rollout]], reward: AnswerReward | None) -> float:
    rates = []
    for batch in batches:
        gc.collect()
        started = time.process_time()
        token_advantages = shaped_advantages(batch, reward)
        rates.append(len(token_advantages) / (time.process_time() - started))
    return max(rates)


def shaped_advantages(batch: Sequence[Rollout], reward: AnswerReward | None) -> list[list[float]]:
    """Token advantages [N][T] of whole groups; without `reward` the rewards are cheap stand-ins."""
    found = []
    components: list[tuple[float, float, float]] = []
    for rollout in batch:
        text, offsets = offsets_from_pieces(rollout.pieces)
        segmentation = segment(text, offsets, think_tag="think", strategy="sentence")
        num_steps = len(segmentation.steps)
        verdicts = rollout.verdicts[:num_steps]
        answer = segmentation.answer
        assert answer is not None and num_steps == len(verdicts)
        if reward is None:
            components.append((float(len(answer) % 3 == 0), sum(verdicts) / num_steps, 0.0))
        else:
            components.append((reward(answer, rollout.gold), process_reward(verdicts), step_count_reward(num_steps)))
        found.append((verdicts, segmentation.spans, len(offsets)))
    advantages: list[float] = gdpo_advantages(components, WEIGHTS, GROUP_SIZE).tolist()
    return [
        shape_step_advantages(advantage, verdicts, spans, num_tokens, component[0])
        for advantage, component, (verdicts, spans, num_tokens) in zip(advantages, components, found, strict=True)
    ]


def make_rollouts(num: int, seed: int) -> list[Rollout]:
    """`num` different completions of about `NUM_TOKENS` tokens, as a medical policy would write them."""
    rng = random.Random(seed)
    rollouts = []
    for index in range(num):
        answer, gold = _answer_and_gold(rng, index)
        tail = ["\n", *_tokens_of(f"<answer>{answer}</answer>")]
        tokens = ["<think>", "\n"]
        separator = rng.choice([" ", " ", "\n", "\n\n"])
        while len(tokens) < NUM_TOKENS - len(tail) - 25:
            tokens += _tokens_of(_sentence(rng) + separator)
        tokens += [*_tokens_of(_sentence(rng)), "</think>", *tail]
        verdicts = [rng.random() < 0.7 for _ in range(100)]
        rollouts.append(Rollout(pieces=_bytes_of(tokens, rng), gold=gold, verdicts=verdicts))
    return rollouts


_TOKEN = re.compile(r"</?[a-z]+>| ?[A-Za-z]{1,7}|[A-Za-z]{1,5}| ?[^\sA-Za-z0-9]{1,2}|\d| ?\w|\s+")


def _tokens_of(text: str) -> list[str]:
    """Cut like byte-level BPE: a space belongs to the word after it, long words fall apart, digits stand alone."""
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == text, text
    return tokens


def _bytes_of(tokens: Sequence[str], rng: random.Random) -> list[bytes]:
    """UTF-8 of the tokens; some characters beyond ASCII are split over two tokens, as BPE does with rare ones."""
    pieces: list[bytes] = []
    for token in tokens:
        data = token.encode()
        if not data.isascii() and rng.random() < 0.5:
            pieces += [data[:-1], data[-1:]]
        else:
            pieces.append(data)
    return pieces


_WORDS = {
    "organ": "liver,spleen,left kidney,right lung,pancreas,gallbladder,urinary bladder,thyroid,aorta,brainstem,uterus",
    "place": "left upper lobe,right lower lobe,hepatic dome,segment 8,posterior fossa,L4-L5 disc,hilum,renal cortex",
    "lesion": "mass,nodule,cyst,effusion,hypodense lesion,haematoma,calcification,spiculated nodule,fluid collection",
    "trait": "well-defined,lobulated,irregular,enhancing,calcified,T2-hyperintense,avascular,heterogeneous",
    "cause": "metastasis,abscess,granuloma,hamartoma,infarction,H. pylori gastritis,adenocarcinoma,simple cyst",
    "unit": "cm,mm,ml,HU",
    "modality": "CT,MRI,chest film,ultrasound scan,H&E section,PET-CT",
}
_CHOICES = {name: values.split(",") for name, values in _WORDS.items()}
_TEMPLATES = (
    "The image is an axial {modality} that shows the {organ} and the {place}.",
    "There is a {trait} {lesion} in the {place}, approx. {x}.{y} {unit} in size.",
    "It measures {x}.{y} x {z}.{y} {unit}.",
    "The {organ} appears normal, i.e. no {lesion} is seen.",
    "Compared with Fig. {x}, the {lesion} is more {trait} (see No. {z}).",
    "Does the {lesion} arise from the {organ}?",
    "A {trait} margin makes {cause} more likely than {cause}, e.g. in the {place}.",
    "On T{x} weighted images the {lesion} is {trait} and does not enhance.",
    "According to Dr. Smith et al., {cause} should be considered vs. {cause}.",
    "This argues against {cause}, because the {organ} would then be {trait}.",
    "The attenuation is {x}{y} HU, which fits a {trait} {lesion}.",
    "{x}. The {organ} and the {place} are symmetric.",
    "- **{organ}**: {trait}, without {lesion}.",
    "Therefore the most likely diagnosis is {cause} of the {organ}.",
    "The diameter is ≥ {x} {unit} and the margin is {trait} – typical of {cause}.",
)


def _sentence(rng: random.Random) -> str:
    template = rng.choice(_TEMPLATES)
    text = re.sub(r"\{([a-z]{2,})\}", lambda match: rng.choice(_CHOICES[match.group(1)]), template)
    return re.sub(r"\{[xyz]\}", lambda match: str(rng.randint(1, 9)), text)


_COUNTER = itertools.count(10)


def _answer_and_gold(rng: random.Random, index: int) -> tuple[str, str]:
    """Words, phrases, quantities and yes/no by turns, as in VQA-RAD and PathVQA; the number makes each pair new."""
    unique = next(_COUNTER)
    organ, lesion, cause, trait = (rng.choice(_CHOICES[name]) for name in ("organ", "lesion", "cause", "trait"))
    kind = index % 4
    if kind == 0:
        return f"{unique}.5 cm", f"{unique}.{rng.choice((5, 7))} cm"
    if kind == 1:
        return f"a {trait} {lesion} of the {organ}, series {unique}", f"{lesion} in the {organ}"
    if kind == 2:
        return f"{cause}, case {unique}", rng.choice([cause, f"{cause} of the {organ}"])
    return f"yes, there is a {lesion} in image {unique}", rng.choice(["yes", "no"])


if __name__ == "__main__":
    sys.exit(main())
