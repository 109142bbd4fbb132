"""What a wheelhouse says about itself: for which Python and machine it is, its parts and wheels with their hashes."""

from __future__ import annotations

import json
import platform
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

from mrpo.atomic import write_text
from mrpo.errors import DataError
from mrpo.manifest import file_hash

NAME = "manifest.json"
FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file's name, size in bytes and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Written by `make wheelhouse`, read by `make setup WHEELHOUSE=…`."""

    device: str  # cpu or gpu
    python: str  # version of the interpreter whose wheels these are, as 3.11
    platform: str  # as sysconfig names it, as linux-x86_64
    glibc: str  # the oldest that the wheels run with, as 2.34; "" where any does
    parts: tuple[FileFacts, ...]  # in order
    wheels: tuple[FileFacts, ...]

    def write(self, folder: Path) -> None:
        """Write it last: a wheelhouse without one is unfinished."""
        write_text(folder / NAME, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a wheelhouse.

    Raises:
        DataError: there is none, or it is not one.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format")
        if found != FORMAT:
            raise DataError(f"{path} has format {found}, expected {FORMAT}; make the wheelhouse again")
        parts, wheels = (tuple(FileFacts(**item) for item in content.pop(key)) for key in ("parts", "wheels"))
        return Manifest(**content, parts=parts, wheels=wheels)
    except OSError as error:
        raise DataError(
            f"{folder} is no finished wheelhouse: {NAME}: {error.strerror}; make it with make wheelhouse OUT=<folder>"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}); copy it again") from None


def this_python() -> tuple[str, str]:
    """Version and platform of the interpreter that runs, as a manifest names them."""
    return ".".join(platform.python_version_tuple()[:2]), sysconfig.get_platform()


def facts_of(path: Path) -> FileFacts:
    """Size and hash of a file."""
    return FileFacts(name=path.name, size=path.stat().st_size, sha256=file_hash(path))
