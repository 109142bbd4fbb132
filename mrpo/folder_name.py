"""Settings that name a folder of a run."""

from __future__ import annotations

import re

from mrpo.errors import ConfigError

PLAIN = re.compile(r"[A-Za-z0-9][\w.+=-]{0,199}")


def require_folder_name(setting: str, value: str) -> None:
    """Refuse what is no plain name of one folder.

    Args:
        setting: that holds the name.
        value: of it.

    Raises:
        ConfigError: it is not.
    """
    if not PLAIN.fullmatch(value):
        raise ConfigError(
            f"{setting}={value!r} names a folder: use letters, digits and . _ + = - only, at most 200 of them"
        )
