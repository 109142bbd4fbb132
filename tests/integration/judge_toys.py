"""A toy that can be served as a judge: what it rules is chance, the form of it is not."""

from __future__ import annotations

import json
from pathlib import Path

from judge.answer_rubric import ANSWER_RUBRIC
from judge.rubric import RUBRIC
from mrpo.phantom.toy_models import build_toy_model

IMAGE_SIZE = 420  # pixels; 225 tokens


def toy_judge(folder: Path) -> str:
    """A checkpoint whose tokenizer has words for what judges read and write, so that replies are short."""
    marks = {f"step{k}": {"Alignment": k % 2, "Contribution": 1} for k in range(1, 30)}
    corpus = [RUBRIC, ANSWER_RUBRIC, json.dumps(marks, separators=(",", ":"))] * 3
    build_toy_model("qwen2_5_vl", folder, corpus=corpus, seed=1, image_size=IMAGE_SIZE)
    return str(folder)
