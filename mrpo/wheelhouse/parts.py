"""Wheels as one tar stream cut into parts, so that one larger than a medium fits too, and back."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo.errors import DataError, first_few
from mrpo.wheelhouse.manifest import FileFacts, facts_of

BLOCK = 2**20  # bytes read at once


class PartWriter(io.RawIOBase):
    """Takes a stream and leaves files `part-0001`, `part-0002`, … of at most `size` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        """Write nothing yet.

        Args:
            folder: of the parts.
            size: of each but the last, bytes.
        """
        self.parts: list[FileFacts] = []
        self._folder, self._size = folder, size
        self._file: io.BufferedWriter | None = None
        self._digest, self._filled = hashlib.sha256(), 0

    def writable(self) -> bool:
        """For `tarfile`."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append to the part in hand, and begin the next where it is full."""
        rest = memoryview(data)
        while rest:
            if self._file is None:
                self._file = (self._folder / f"{self._name()}.tmp").open("wb")
            piece = rest[: self._size - self._filled]
            self._file.write(piece)
            self._digest.update(piece)
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == self._size:
                self._finish()
        return len(data)

    def close(self) -> None:
        """Finish the last part."""
        if self._file is not None:
            self._finish()
        super().close()

    def _name(self) -> str:
        return f"part-{len(self.parts) + 1:04}"

    def _finish(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file, name = None, self._name()
        (self._folder / f"{name}.tmp").replace(self._folder / name)
        self.parts.append(FileFacts(name=name, size=self._filled, sha256=self._digest.hexdigest()))
        self._digest, self._filled = hashlib.sha256(), 0


class PartReader(io.RawIOBase):
    """The stream that the parts are."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read nothing yet."""
        self._paths = list(paths)
        self._file: io.BufferedReader | None = None

    def readable(self) -> bool:
        """For `tarfile`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, less at a part's end; 0 at the last one's."""
        while True:
            if self._file is None:
                if not self._paths:
                    return 0
                self._file = self._paths.pop(0).open("rb")
            if count := self._file.readinto(buffer):
                return count
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the part in hand."""
        if self._file is not None:
            self._file.close()
        super().close()


def pack(wheels: Sequence[Path], folder: Path, size: int) -> list[FileFacts]:
    """Write `wheels` into parts of at most `size` bytes under `folder`; the same wheels give the same parts."""
    with PartWriter(folder, size) as writer, tarfile.open(fileobj=writer, mode="w|", bufsize=BLOCK) as stream:
        for wheel in wheels:
            facts = tarfile.TarInfo(wheel.name)
            facts.size = wheel.stat().st_size
            with wheel.open("rb") as file:
                stream.addfile(facts, file)
    return writer.parts


def require_whole(folder: Path, parts: Sequence[FileFacts]) -> None:
    """Hash every part.

    Raises:
        DataError: names those that are missing or not what they were.
    """
    faults = []
    for part in parts:
        path = folder / part.name
        if not path.is_file():
            faults.append(f"{part.name} is missing")
        elif path.stat().st_size != part.size or facts_of(path) != part:
            faults.append(f"{part.name} is damaged")
    if faults:
        raise DataError(f"wheelhouse {folder}: {first_few(faults)} of {len(parts)} parts; copy them again")


def unpack(folder: Path, parts: Sequence[FileFacts], wheels: Sequence[FileFacts], target: Path) -> None:
    """Write the wheels that the parts hold into the folder `target`, and hash each on its way.

    Raises:
        DataError: they hold others than `wheels`, or other content.
    """
    expected = {wheel.name: wheel for wheel in wheels}
    reader = io.BufferedReader(PartReader([folder / part.name for part in parts]), BLOCK)
    with reader, tarfile.open(fileobj=reader, mode="r|", bufsize=BLOCK) as stream:
        for member in stream:
            found = _extract(stream, member, target)
            if expected.pop(member.name, None) != found:
                raise DataError(f"wheelhouse {folder}: {found.name} is not what the manifest says; make it again")
    if expected:
        raise DataError(f"wheelhouse {folder}: its parts lack {first_few(sorted(expected))}; make it again")


def _extract(stream: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> FileFacts:
    """A member's content under its bare name: nothing that a name says leads out of `target`."""
    file = stream.extractfile(member)
    if file is None or member.name != Path(member.name).name:
        raise DataError(f"the wheelhouse holds {member.name!r}, which is no wheel; make it again")
    digest, size = hashlib.sha256(), 0
    with file, (target / member.name).open("wb") as copy:
        while block := file.read(BLOCK):
            copy.write(block)
            digest.update(block)
            size += len(block)
    return FileFacts(name=member.name, size=size, sha256=digest.hexdigest())
