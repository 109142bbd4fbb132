"""The judge's API key: read where it is used, from the environment, and put nowhere else."""

from __future__ import annotations

import os

from mrpo.errors import ConfigError


def read_api_key(variable: str) -> str | None:
    """The key in an environment variable; None where it is unset or blank.

    Raises:
        ConfigError: the value cannot be a key. It is not quoted.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{variable} holds characters that no API key has; export {variable}=<key> again")
    return key
