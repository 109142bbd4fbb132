"""What happens when the record of a run cannot be written: the run ends, because going on would leave a hole in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpo.errors import ResourceError


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Around the writing of `path`, a file of a run's folder.

    Raises:
        ResourceError: it could not be written; the message says how the run goes on.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}; the run ends here, because its record would have a "
            "hole. Make room on that disk, or move the run folder to another, then go on with resume=<it>"
        ) from error
