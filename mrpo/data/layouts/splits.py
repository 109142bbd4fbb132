"""Which split a file belongs to, by the words of its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

SPLITS = ("train", "validation", "test")
_WORDS = {
    "train": "train",
    "trainset": "train",
    "training": "train",
    "val": "validation",
    "valset": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testset": "test",
}


def in_name_order(files: Iterable[SourceFile]) -> list[SourceFile]:
    """Files by name; the folders they lie in only order those of one name."""
    return sorted(files, key=lambda file: (file.name, file.path))


def named_files(tree: SourceTree, names: Mapping[str, Sequence[str]], *, none: str) -> list[tuple[str, SourceFile]]:
    """Splits and their files, for layouts with fixed file names.

    Args:
        tree: the set.
        names: by split, the names its file may have, the first found counts.
        none: what the tree does not hold where no split has a file, after "holds".

    Raises:
        DataError: no split has a file.
    """
    found = [(split, file) for split, choices in names.items() if (file := tree.first(*choices)) is not None]
    if not found:
        raise DataError(f"{tree.root} holds {none}")
    return found


def split_of(file: SourceFile) -> str | None:
    """The split a file's name, or else a folder it lies in, speaks of; None when none does."""
    for part in reversed(PurePosixPath(file.path).parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return None
