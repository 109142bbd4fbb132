"""Folders of results that say in a file of their own what was measured, so that nothing else goes on in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrpo.errors import ConfigError


def make_folder(path: Path, setting: str) -> None:
    """Make the folder of results, or find it there.

    Raises:
        ConfigError: it is a file, lies below one, or may not be made; the message names the setting.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{setting}={path} cannot be a folder: {error.strerror}; name another") from None


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a tree with its place, names joined by blanks."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key} ")
        else:
            yield f"{path}{key}", value
