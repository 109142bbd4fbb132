"""Zip archives read in place, after a check that nothing in them could leave a folder, link elsewhere or explode.

Members are read one at a time and written under names of our own making, so nothing is ever extracted by its own path.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

from mrpo.errors import DataError

MAX_MEMBER_BYTES = 4 * 2**30
MAX_RATIO = 200  # uncompressed to compressed size; text stays below 50, images near 1
SMALL_BYTES = 2**20  # up to this a member may shrink as it likes
MAX_MEMBERS = 2_000_000
LINK = stat.S_IFLNK

# What reading a damaged archive raises.
ARCHIVE_FAULTS = (
    OSError,
    EOFError,
    ValueError,  # a damaged header: a negative seek, text that is not in the promised encoding
    RuntimeError,  # encrypted, or an unsupported compression (NotImplementedError)
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def open_archive(file: Path) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """An archive and its files, hidden and system ones left out.

    Raises:
        DataError: not a whole zip archive, or a member that is unsafe to read; names archive and member.
    """
    try:
        archive = zipfile.ZipFile(file)
    except ARCHIVE_FAULTS as error:
        raise DataError(
            f"{file} is not a whole zip archive ({error}); a download that broke off looks like this: get it again"
        ) from None
    infos = [info for info in archive.infolist() if not info.is_dir() and not _is_clutter(info.filename)]
    faults = [f"member {info.filename!r} {fault}" for info in infos if (fault := member_fault(info))]
    twice = [name for name, count in Counter(info.filename for info in infos).items() if count > 1]
    if len(infos) > MAX_MEMBERS:
        faults.append(f"it holds {len(infos)} files, more than {MAX_MEMBERS}")
    elif twice:
        faults.append(f"it holds {twice[0]!r} twice")
    if faults:
        archive.close()
        raise DataError(f"{file} is refused: {faults[0]}; get the archive again from where it is published")
    return archive, infos


def member_fault(info: zipfile.ZipInfo) -> str | None:
    """Why a member must not be read; None when it may."""
    name = info.orig_filename  # `filename` is already cut at a NUL and has its separators changed
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive:
        return "has an absolute path"
    if ".." in parts:
        return "leaves the folder by '..'"
    if "\0" in name:
        return "has a NUL in its name"
    if stat.S_IFMT(info.external_attr >> 16) == LINK:
        return "is a symbolic link"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.file_size > MAX_MEMBER_BYTES:
        return f"unpacks to {info.file_size} bytes, more than {MAX_MEMBER_BYTES}"
    if info.file_size > SMALL_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
        return f"unpacks {info.compress_size} bytes to {info.file_size}, as a zip bomb does"
    return None


def _is_clutter(name: str) -> bool:
    """What file managers add."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1].startswith("._"))
