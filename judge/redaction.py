"""API keys in what endpoints send back: some gateways quote the Authorization header. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = "***"


class Redactor:
    """Cuts keys out of text, as they stand and as JSON (also within JSON), a URL or HTML writes them."""

    def __init__(self, keys: Iterable[str]) -> None:
        """`keys` are printable ASCII."""
        found = "|".join("".join(_any_form(character) for character in key) for key in keys if key)
        self._text = re.compile(found) if found else None
        self._bytes = re.compile(found.encode("ascii")) if found else None

    def text(self, text: str) -> str:
        """Without the keys."""
        return self._text.sub(REDACTED, text) if self._text is not None else text

    def content(self, content: bytes) -> bytes:
        """Likewise, of a body as it was received."""
        return self._bytes.sub(REDACTED.encode("ascii"), content) if self._bytes is not None else content


def _any_form(character: str) -> str:
    """A pattern. The number of backslashes is bounded: a flood of them must not take quadratic time."""
    code = ord(character)
    return (
        rf"(?:\\{{1,7}}u(?i:{code:04x})|\\{{0,7}}{re.escape(character)}|%(?i:{code:02x})|&#0{{0,4}}{code};"
        rf"|&#[xX]0{{0,4}}(?i:{code:x});)"
    )
