"""Checksums of every file of a checkpoint, `manifest.json`: written last, compared before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mrpo.atomic import write_text
from mrpo.errors import DataError

MANIFEST = "manifest.json"
NUM_THREADS = 4  # hashing lets other threads run; one core takes 1–2 GB/s
BLOCK_BYTES = 2**20


class GivenUpError(Exception):
    """Nobody waits for the checksums any more; not a word about the files."""


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Note every file below `folder`; nothing may change in it afterwards.

    Args:
        folder: of a checkpoint, filled.
        known: sha256 by path relative to `folder`, of files that need not be read again.

    Raises:
        OSError: a file cannot be read, or the manifest not be written.
    """
    files = _files(folder)
    found = {**_hashes(folder, [name for name in files if name not in (known or {})]), **(known or {})}
    noted = {name: {"bytes": size, "sha256": found[name]} for name, size in files.items()}
    write_text(folder / MANIFEST, json.dumps({"format_version": 1, "files": noted}, indent=2) + "\n")


def check_manifest(folder: Path, *, part: str = "", given_up: threading.Event | None = None) -> None:
    """Compare every file that `folder`'s manifest names with what was written, byte for byte.

    Args:
        folder: of a checkpoint.
        part: a folder in it, such as `hf`, to which the comparison keeps; empty: all.
        given_up: ends it when set; 100 GiB take minutes.

    Raises:
        DataError: a file or the manifest is missing, cannot be read or differs; names it.
        GivenUpError: `given_up` is set.
    """
    expected = check_sizes(folder, part=part)
    try:
        found = _hashes(folder, list(expected), given_up)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    for name, digest in expected.items():
        if found[name] != digest:
            raise DataError(f"{folder / name} is damaged: sha256 {found[name][:12]}…, {digest[:12]}… was written")


def check_sizes(folder: Path, *, part: str = "") -> dict[str, str]:
    """As `check_manifest`, but compare how long the files are: for readers of what was compared byte for byte before.

    Returns:
        sha256 that was written, by path.
    """
    path = folder / MANIFEST
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in noted.items()
            if str(name).startswith(f"{part}/" if part else "")
        }
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}), so that nothing vouches for the files") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}), so that nothing vouches for the files") from None
    try:
        for name, (num_bytes, _) in expected.items():
            size = (folder / name).stat().st_size
            if size != num_bytes:
                raise DataError(f"{folder / name} is damaged: it has {size:,} bytes, {num_bytes:,} were written")
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    return {name: digest for name, (_, digest) in expected.items()}


def file_hash(path: Path, given_up: threading.Event | None = None) -> str:
    """sha256 of a file, in hex; `given_up` as in `check_manifest`."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            if given_up is not None and given_up.is_set():
                raise GivenUpError
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> dict[str, int]:
    """Bytes by relative path, of all but the manifest."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for name, path in files.items() if name != MANIFEST}


def _hashes(folder: Path, names: list[str], given_up: threading.Event | None = None) -> dict[str, str]:
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="checksums") as threads:
        return dict(zip(names, threads.map(lambda name: file_hash(folder / name, given_up), names), strict=True))
