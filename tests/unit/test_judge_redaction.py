"""Keys in what endpoints quote, in every form that a reply can give them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest

from judge.redaction import Redactor

KEYS = ("sk/planted/0123456789", "sk+planted=0123456789'\\")


def slashes(text: str) -> str:
    return json.dumps(text)[1:-1].replace("/", "\\/")


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": lambda key: json.dumps(key)[1:-1],
    "json with slashes": slashes,
    "json in json": lambda key: slashes(slashes(key)),
    "code points": lambda key: "".join(f"\\u{ord(character):04X}" for character in key),
    "code points in json": lambda key: "".join(f"\\\\u{ord(character):04x}" for character in key),
    "url": lambda key: quote(key, safe=""),
    "url in lower case": lambda key: quote(key, safe="").lower(),
    "html": lambda key: key.replace("/", "&#x2F;").replace("+", "&#43;").replace("'", "&#39;"),
    "python": lambda key: repr(key)[1:-1],
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_cut_out_in_every_form(key: str, form: str) -> None:
    redactor, text = Redactor(KEYS), f'{{"error": "bad key {FORMS[form](key)} given"}}'
    assert redactor.text(text) == '{"error": "bad key *** given"}'
    assert redactor.content(text.encode()) == b'{"error": "bad key *** given"}'


def test_other_text_stays_as_it_is() -> None:
    text = '{"step1": "sk/planted/012345678", "path": "a\\/b", "n": "%2F"}'
    assert Redactor(KEYS).text(text) == Redactor([]).text(text) == text


def test_a_flood_of_backslashes_takes_no_time_to_speak_of() -> None:
    began_s = time.process_time()
    Redactor(KEYS).content(b"sk" + b"\\" * 2**20)
    assert time.process_time() - began_s < 5.0
