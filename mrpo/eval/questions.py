"""The questions of a benchmark: the test split of every prepared set, with what its manifest says about it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrpo.data.checks import RowChecks
from mrpo.data.jsonl import read_jsonl
from mrpo.data.sets import set_spec
from mrpo.errors import ConfigError, DataError
from mrpo.types import Example

MANIFEST = "manifest.json"
TEST_FILE = "test.jsonl"
IMAGES_FILE = "images.sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """One set, as prepared by `make data`."""

    name: str
    open_rule: str  # which questions were kept
    license: str
    examples: list[Example]
    questions_sha256: str  # of the questions asked, each with its image's place in the set
    images_sha256: str  # of the list of image digests; of the manifest where a set has no such list


def load_question_sets(root: Path, names: Sequence[str], *, num_questions: int | None) -> list[QuestionSet]:
    """Read the test questions of every set.

    Args:
        root: holds a folder of each set.
        names: of the sets.
        num_questions: of each set, the first; None: all.

    Raises:
        ConfigError: no set is named, one is unknown or named twice, or one is not prepared.
        DataError: a damaged file, or a set without test questions.
    """
    if not names:
        raise ConfigError("no set to evaluate on; name some: make eval MODEL=… SETS=vqa_rad,slake")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"benchmark.sets names {twice[0]} twice")
    return [_load(root, name, num_questions) for name in names]


def _load(root: Path, name: str, num_questions: int | None) -> QuestionSet:
    spec = set_spec(name)
    folder = root / name
    manifest = _manifest(folder, name)
    examples = read_jsonl(folder / TEST_FILE, root=folder, checks=RowChecks(max_bad_rows=0))[:num_questions]
    if not examples:
        raise DataError(f"{folder / TEST_FILE} holds no question; prepare {name} with another data.open_rule")
    images = folder / IMAGES_FILE
    return QuestionSet(
        name=name,
        open_rule=str(manifest["open_rule"]),
        license=spec.license,
        examples=examples,
        questions_sha256=_questions_digest(examples, folder),
        images_sha256=hashlib.sha256((images if images.is_file() else folder / MANIFEST).read_bytes()).hexdigest(),
    )


def _questions_digest(examples: Sequence[Example], folder: Path) -> str:
    digest = hashlib.sha256()
    for example in examples:
        row = {**asdict(example), "image": os.path.relpath(example.image, folder)}
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _manifest(folder: Path, name: str) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{name} is not prepared: no {file}; run make data with data.set={name} data.out={folder}, "
            "or set benchmark.root=<folder with the prepared sets>"
        ) from None
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}; prepare {name} again") from None
    if not isinstance(tree, dict) or "open_rule" not in tree:
        raise DataError(f"{file} names no open_rule; prepare {name} again")
    return tree
