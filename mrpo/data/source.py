"""The folder with a set as distributed, and the zip archives in it, as one tree of files."""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from mrpo.data.archive import ARCHIVE_FAULTS, open_archive
from mrpo.errors import DataError
from mrpo.manifest import file_hash

logger = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
HEAD_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of the tree."""

    path: str  # relative to the source folder; a member counts as lying beside its archive
    file: Path  # on disk: the file, or the archive
    member: str | None = None  # name inside the archive

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def label(self) -> str:
        """How messages name it: relative to the source folder."""
        return self.path if self.member is None else f"{self.path} (in {self.file.name})"


class SourceTree:
    """All files under a folder, found by name. Use as a context manager: it holds archives open."""

    def __init__(self, root: Path) -> None:
        """List the folder; what is no regular file in it is passed over with a report.

        Raises:
            DataError: a folder cannot be listed, or a zip archive in it is damaged or unsafe.
        """
        self.root = root
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._by_name: dict[str, list[SourceFile]] = {}
        self.opened: set[Path] = set()  # files on disk that were read, archives included
        self.passed_over: dict[str, str] = {}  # path: why it is never opened
        try:
            for file in self._walk():
                self._by_name.setdefault(file.name, []).append(file)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SourceTree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archives."""
        for archive in self._archives.values():
            archive.close()

    @property
    def archive_names(self) -> str:
        """For messages: the archives that were looked into."""
        names = ", ".join(file.name for file in self._archives)
        return f" or in {names}" if names else ""

    def _walk(self) -> Iterator[SourceFile]:
        home = self.root.resolve()
        for folder, folders, names in os.walk(self.root, onerror=_refuse_folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            linked = [name for name in folders if Path(folder, name).is_symlink()]  # which the walk does not enter
            for name in [*linked, *sorted(names)]:
                if name.startswith("."):
                    continue
                file = Path(folder, name)
                path = file.relative_to(self.root)
                if fault := _file_fault(file, home):
                    self.passed_over[path.as_posix()] = fault
                    logger.warning("passed over: %s %s", path, fault)
                    continue
                yield SourceFile(path=path.as_posix(), file=file)
                if file.suffix.lower() == ".zip":
                    refuse_stand_ins(_head(file), file)
                    archive, infos = open_archive(file)
                    self._archives[file] = archive
                    for info in infos:
                        member = (path.parent / info.filename).as_posix()
                        yield SourceFile(path=member, file=file, member=info.filename)

    def files(self) -> Iterable[SourceFile]:
        """Every file, in a fixed order."""
        return sorted((file for files in self._by_name.values() for file in files), key=lambda file: file.path)

    def fault_of(self, path: str) -> str | None:
        """Why the file of this path, or a folder that it would lie in, was passed over; None when it was not."""
        wanted = _parts(path)
        for place, fault in self.passed_over.items():
            parts = list(PurePosixPath(place).parts)
            if any(wanted[:end] == parts[-end:] for end in range(1, len(wanted) + 1)):
                return f"{place} {fault}"
        return None

    def matching(self, path: str) -> list[SourceFile]:
        """The files whose path ends in this path, whole parts compared."""
        parts = _parts(path)
        if not parts or ".." in parts:
            return []
        return [
            file
            for file in self._by_name.get(parts[-1], [])
            if list(PurePosixPath(file.path).parts[-len(parts) :]) == parts
        ]

    def first(self, *paths: str) -> SourceFile | None:
        """The file of the first of these paths that is there.

        Raises:
            DataError: two files of that path lie equally deep, so that it is unclear which is meant.
        """
        for path in paths:
            found = sorted(self.matching(path), key=_depth)
            if len(found) > 1 and _depth(found[0]) == _depth(found[1]):
                raise DataError(
                    f"{self.root} holds {found[0].label} and {found[1].label}; leave only the one that is meant"
                )
            if found:
                return found[0]
        return None

    @contextmanager
    def open(self, file: SourceFile) -> Iterator[IO[bytes]]:
        """A file for reading from its start, archive member or not.

        Raises:
            DataError: it cannot be read, or is a stand-in for the real file.
        """
        self.opened.add(file.file)
        try:
            stream: IO[bytes] = (
                file.file.open("rb") if file.member is None else self._archives[file.file].open(file.member)
            )
            with stream:
                refuse_stand_ins(stream.read(HEAD_BYTES), self.root / file.label)
                stream.seek(0)
                yield stream
        except DataError:
            raise
        except ARCHIVE_FAULTS as error:
            raise DataError(f"{self.root / file.label} cannot be read ({error}); get it again") from None

    def read(self, file: SourceFile, *, max_bytes: int) -> bytes:
        """A whole file.

        Raises:
            DataError: it cannot be read, is larger than `max_bytes`, or is a stand-in for the real file.
        """
        with self.open(file) as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise DataError(f"{self.root / file.label} is larger than {max_bytes} bytes")
        return data


def sha256_of(file: Path) -> str:
    """The digest of a file on disk.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file_hash(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); mend its permissions, or get it again") from None


def refuse_stand_ins(head: bytes, file: Path) -> None:
    """Recognise what lies in a file's place when it was not really downloaded.

    Raises:
        DataError: a Git LFS pointer, or a web page.
    """
    if head.startswith(LFS_POINTER):
        raise DataError(
            f"{file} is a Git LFS pointer (first line {LFS_POINTER.decode()!r}), not the file itself; "
            "run `git lfs install && git lfs pull` in the clone, or download the file from the repository's web page"
        )
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{file} is a web page, not the file itself; log in where the set is published and get it again"
        )


def _parts(path: str) -> list[str]:
    return [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", ".")]


def _file_fault(file: Path, home: Path) -> str | None:
    """Why an entry of a folder is not opened; `home` is the resolved source folder."""
    try:
        kind = file.stat().st_mode
        inside = not file.is_symlink() or file.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a loop of links
        return "is a symbolic link to nothing" if file.is_symlink() else "cannot be looked at"
    if not inside:
        return "is a symbolic link that leaves the folder; put the file itself there"
    if stat.S_ISDIR(kind):
        return "is a symbolic link to a folder; put the folder itself there"
    return None if stat.S_ISREG(kind) else "is no regular file (a pipe, socket or device)"


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}); mend its permissions, or take it away")


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); mend its permissions, or get it again") from None


def _depth(file: SourceFile) -> int:
    return len(PurePosixPath(file.path).parts)
