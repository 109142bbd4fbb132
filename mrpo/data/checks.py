"""Row checks shared by every loader: nothing is dropped silently, nothing unreadable reaches a run."""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mrpo.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RowChecks:
    """Collects bad rows of a data set and refuses it once there are more than allowed."""

    max_bad_rows: int
    bad_rows: list[str] = field(default_factory=list)
    _readable: dict[Path, str | None] = field(default_factory=dict)

    def reject(self, file: Path, row: int, reason: str) -> None:
        """Count and report one bad row; `row` counts from 1.

        Raises:
            DataError: more rows are bad than `data.max_bad_rows`.
        """
        message = f"{file}, row {row}: {reason}"
        self.bad_rows.append(message)
        if len(self.bad_rows) > self.max_bad_rows:
            raise DataError(
                f"{message} ({len(self.bad_rows)} bad so far, data.max_bad_rows={self.max_bad_rows}; "
                "mend the row or raise data.max_bad_rows to drop bad rows with a report)"
            )
        logger.warning("dropped: %s", message)

    def text(self, value: object) -> str:
        """As `clean_text`."""
        return clean_text(value)

    def image_fault(self, path: Path) -> str | None:
        """Why an image cannot be used; None when it can. Each file is opened once."""
        if path not in self._readable:
            self._readable[path] = _open_fault(path)
        return self._readable[path]


def clean_text(value: object) -> str:
    """A text field as clean text; numbers are written out ("2"), anything else is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return ""  # a missing value, as pandas writes it
    if isinstance(value, int) and abs(value) >= 10**300:
        return ""  # no answer to a question, and beyond what Python turns into text
    text = " ".join(str(value).split())
    return text if _is_unicode(text) else ""


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and nothing can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _open_fault(path: Path) -> str | None:
    try:
        if not path.is_file():
            return f"image {path} does not exist"
        with Image.open(path) as image:
            image.convert("RGB")  # decoded as a run will: Pillow's `verify` passes a truncated JPEG
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return f"image {path} cannot be read ({error})"
    return None


def require_folder(root: str | None, setting: str) -> Path:
    """The folder a setting names.

    Raises:
        DataError: it is not there.
    """
    path = Path(root or "").expanduser()
    if not root or not path.is_dir():
        raise DataError(f"{setting}={root} is not a folder; set {setting}=<folder with the data set>")
    return path.resolve()


def require_file(path: Path, setting: str) -> Path:
    """A file inside the data root.

    Raises:
        DataError: it is not there.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; {setting} must point to a folder that holds it")
    return path
