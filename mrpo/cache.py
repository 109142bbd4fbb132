"""Folders in the cache: named by what made them, whole or absent, safe with several processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from mrpo.errors import ResourceError


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, built first by `build` unless it is there. Another process that is faster wins.

    Args:
        folder: final name; holds a content hash, so that what is there is right.
        build: fills the empty folder it is given.

    Raises:
        ResourceError: the cache cannot be written, at the start or midway.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder.parent}: {error.strerror}; set cache_dir to a folder you may write to"
        ) from None
    try:
        build(building)
        building.chmod(0o755)
        os.rename(building, folder)
    except OSError as error:
        if not folder.is_dir():
            raise ResourceError(
                f"cannot make {folder}: {error}; free some space, or set cache_dir to a folder you may write to"
            ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder
