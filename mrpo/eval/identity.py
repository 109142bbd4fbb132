"""What makes two evaluations the same: the model, the questions, and how both are asked and judged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrpo.config import Config, plain
from mrpo.eval.questions import QuestionSet
from mrpo.judge_parts import judge_identity

MEASURED = (  # settings that change what is generated, or how it is rated
    "seed",
    "model.terse_prompt",
    "model.max_pixels",
    "rollout.max_new_tokens",
    "rollout.max_model_len",
    "rollout.dtype",
    "algorithm.step_strategy",
    "algorithm.threshold",
    "reward.answer.kind",
    "reward.answer.bertscore.model",
    "reward.answer.bertscore.num_layers",
    "judge.kind",
    "judge.lexical",
    "judge.send_image",
    "judge.temperature",
    "judge.max_completion_tokens",
)
MODEL_FILES = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".txt", ".py")  # weights and all beside
WHOLE_BYTES = 64 * 2**20  # larger files are known by name, size, time and both ends
END_BYTES = 2**20


def evaluation_identity(
    config: Config, *, model_folder: Path | None, generations_sha256: str | None, sets: Sequence[QuestionSet]
) -> dict[str, Any]:
    """The identity as JSON-like data; neither the model's name nor its place is part of it.

    Args:
        config: of the evaluation.
        model_folder: the checkpoint; None: outputs were generated elsewhere.
        generations_sha256: of the file with these outputs.
        sets: the questions.
    """
    tree, judge = plain(config), judge_identity(config.judge)
    return {
        "model": None if model_folder is None else _digests(model_folder),
        "generations": generations_sha256,
        "settings": {name: _setting(tree, name) for name in MEASURED},
        "judge": None if judge is None else asdict(judge),
        "sets": {
            item.name: {
                "open_rule": item.open_rule,
                "num_questions": len(item.examples),
                "questions": item.questions_sha256,
                "images": item.images_sha256,
            }
            for item in sets
        },
    }


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file that an engine may read, by name."""
    files = (file for file in sorted(folder.iterdir()) if file.suffix in MODEL_FILES and file.is_file())
    return {file.name: _digest(file) for file in files}


def _digest(file: Path) -> str:
    """Of the content; of a file above `WHOLE_BYTES`, of size, time of change, first and last MiB."""
    facts = file.stat()
    with file.open("rb") as content:
        if facts.st_size <= WHOLE_BYTES:
            return hashlib.file_digest(content, "sha256").hexdigest()
        ends = content.read(END_BYTES)
        content.seek(-END_BYTES, 2)
        ends += content.read(END_BYTES)
    return "ends:" + hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}\n".encode() + ends).hexdigest()


def _setting(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree
