"""The judge's API keys: read where they are used, from the environment or a file, and put nowhere else."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path

from mrpo.choices import JudgeKind
from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import ConfigError

logger = logging.getLogger(__name__)
DEFAULT_KEY_ENV = next(item.default for item in fields(JudgeConfig) if item.name == "api_key_env")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where an endpoint's key is looked for."""

    variable: str | None = None
    file: str | None = None

    @property
    def is_default(self) -> bool:
        """Whether nobody named it, so that it may be empty: a server in the house often asks for no key."""
        return self.file is None and self.variable == DEFAULT_KEY_ENV

    @property
    def remedy(self) -> str:
        """What to do where the key is missing or wrong."""
        return f"write the key into {self.file}" if self.file else f"export {self.variable}=<key>"

    def __str__(self) -> str:
        return self.file or self.variable or ""


def key_source(judge: JudgeConfig, endpoint: EndpointConfig) -> KeySource:
    """An endpoint's own file or variable, else the judge's; a file goes before a variable."""
    if endpoint.api_key_file is not None or endpoint.api_key_env is not None:
        own = endpoint.api_key_file
        return KeySource(file=own, variable=None if own else endpoint.api_key_env)
    if judge.api_key_file is not None:
        return KeySource(file=judge.api_key_file)
    return KeySource(variable=judge.api_key_env)


def key_of(judge: JudgeConfig, endpoint: EndpointConfig) -> str | None:
    """What an endpoint is shown; a judge of the run's own never sees a vendor's key.

    Raises:
        ConfigError: see `read_key`.
    """
    return read_key(key_source(judge, endpoint)) if judge.kind == JudgeKind.OPENAI_COMPATIBLE else None


def read_key(source: KeySource) -> str | None:
    """The key; None where the variable is unset or blank.

    Raises:
        ConfigError: the file cannot be read or is empty, or the value cannot be a key. It is not quoted.
    """
    if source.file is not None:
        key = _read_file(source.file)
        if not key:
            raise ConfigError(f"the key file {source.file} is empty; {source.remedy}")
    else:
        assert source.variable is not None
        key = os.environ.get(source.variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{source} holds characters that no API key has; {source.remedy} again")
    return key or None


def _read_file(name: str) -> str:
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"the key file {name} cannot be read ({error.strerror}); judge.api_key_file names it"
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("the key file %s may be read by others; chmod 600 %s", name, name)
    return text.strip()
