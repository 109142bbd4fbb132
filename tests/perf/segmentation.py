"""The sentence rules against other segmenters on the hand-cut corpus, as `python -m tests.perf.segmentation`.

- exact: share of texts whose every step is as expected.
- F1: of the inner step ends, over all texts together.
- texts/s: of one core's process time, the best of several rounds.

The rules of `mrpo.sentences` are fitted to the corpus; the held-out texts tell more. All get the same think blocks; a
segmenter's sentences count without outer whitespace, and where they hold no letter or digit they do not count.
`pysbd + markers` hands list markers to the sentence after them, as the contract asks: of its own, pysbd makes a
sentence of "1.".
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nltk
import pysbd

from mrpo.sentences import sentence_spans

logger = logging.getLogger("bench")
CORPUS = Path(__file__).parents[1] / "golden" / "segmentation.jsonl"
ROUNDS = 3

Spans = list[tuple[int, int]]
Segmenter = Callable[[str], Spans]
Case = tuple[str, Spans]  # content of a think block, its steps


def main() -> int:
    """Log the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    log_table()
    return 0


def log_table() -> None:
    """Measure every segmenter that is there and log a line each."""
    fitted, held_out = load_cases(held_out=False), load_cases(held_out=True)
    plain = [(text, steps) for text, steps in fitted + held_out if text.isascii() and "\n" not in text]
    known = segmenters()
    for title, cases in (("corpus", fitted), ("held out", held_out), ("of both, ASCII on one line", plain)):
        logger.info("%-40s %8s %8s %9s", f"{title}: {len(cases)} texts", "exact", "F1", "texts/s")
        for name, segmenter in known.items():
            exact, f1 = quality(segmenter, cases)
            logger.info("%-40s %8.3f %8.3f %9.0f", f"  {name}", exact, f1, speed(segmenter, cases))


def segmenters() -> dict[str, Segmenter]:
    """By name; punkt only where its data is on this machine."""
    rules = pysbd.Segmenter(language="en", clean=False, char_span=True)

    def by_pysbd(text: str) -> Spans:
        return [(span.start, span.end) for span in rules.segment(text)]

    found: dict[str, Segmenter] = {
        "mrpo.sentences": lambda text: sentence_spans(text, 0, len(text)),
        "pysbd 0.3 (en)": by_pysbd,
        "pysbd + markers": lambda text: _join_markers(text, by_pysbd(text)),
    }
    try:
        punkt = nltk.tokenize.PunktTokenizer("english")
    except LookupError:
        logger.info("nltk's punkt is left out: its data (punkt_tab) is not on this machine")
    else:
        found["nltk punkt"] = lambda text: list(punkt.span_tokenize(text))
    return found


def load_cases(*, held_out: bool) -> list[Case]:
    """Every text with one think block; those with several or none test the tags, not the sentences."""
    cases: list[Case] = []
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        block = re.fullmatch(r"<think>(.*)</think>(?:<answer>.*</answer>)?", row["text"], re.DOTALL)
        if block is None or re.search(r"</?(?:think|answer)>", block[1], re.IGNORECASE) or not row["steps"]:
            continue
        if ("split" in row and row["split"] == "held_out") is held_out:
            cases.append((block[1], _locate(block[1], row["steps"])))
    return cases


def _locate(text: str, steps: Sequence[str]) -> Spans:
    spans: Spans = []
    position = 0
    for step in steps:
        start = text.index(step, position)
        position = start + len(step)
        spans.append((start, position))
    return spans


def quality(segmenter: Segmenter, cases: Sequence[Case]) -> tuple[float, float]:
    """(share of texts cut exactly as expected, F1 of inner step ends)."""
    exact = right = proposed = expected = 0
    for text, steps in cases:
        spans = _trimmed(text, segmenter(text))
        exact += spans == steps
        ends, wanted = {end for _, end in spans[:-1]}, {end for _, end in steps[:-1]}
        right += len(ends & wanted)
        proposed += len(ends)
        expected += len(wanted)
    return exact / len(cases), 2 * right / (proposed + expected)


def speed(segmenter: Segmenter, cases: Sequence[Case]) -> float:
    """Texts per second of process time."""
    rates = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for text, _ in cases:
            segmenter(text)
        rates.append(len(cases) / (time.process_time() - started))
    return max(rates)


def _trimmed(text: str, spans: Spans) -> Spans:
    """Spans without outer whitespace; those without letters and digits left out."""
    trimmed: Spans = []
    for start, end in spans:
        piece = text[start:end]
        if any(char.isalnum() for char in piece):
            lead = len(piece) - len(piece.lstrip())
            trimmed.append((start + lead, start + len(piece.rstrip())))
    return trimmed


_MARKER = re.compile(r"[\W_]*(?:step)?[\W_]*(?:[\d.]{1,5}|[a-z]|[ivx]{1,4})[\W_]*", re.IGNORECASE)


def _join_markers(text: str, spans: Spans) -> Spans:
    joined: Spans = []
    pending = -1
    for start, end in spans:
        first = start if pending < 0 else pending
        pending = first if _MARKER.fullmatch(text[start:end]) else -1
        if pending < 0:
            joined.append((first, end))
    return joined if pending < 0 else [*joined, (pending, len(text))]


if __name__ == "__main__":
    sys.exit(main())
