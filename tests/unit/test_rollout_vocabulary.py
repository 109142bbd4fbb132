"""Bytes and bans of a tokenizer's ids, and prompts brought back to their placeholder."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mrpo.errors import ConfigError
from mrpo.families import FAMILIES
from rollout.vocabulary import Vocabulary, byte_alphabet, collapse_image, vocabulary_of

QWEN = FAMILIES["qwen2_5_vl"]
QWEN3 = FAMILIES["qwen3_vl"]


@dataclass
class AddedToken:
    content: str
    special: bool


class Tokenizer:
    """The three questions asked of a Hugging Face tokenizer."""

    def __init__(self, words: list[str], special: list[str], plain: list[str]) -> None:
        self._vocab = {token: index for index, token in enumerate([*words, *special, *plain])}
        self._added = {token: self._vocab[token] for token in [*special, *plain]}
        self.added_tokens_decoder = {
            index: AddedToken(token, special=token in special) for token, index in self._added.items()
        }

    def get_vocab(self) -> dict[str, int]:
        return self._vocab

    def get_added_vocab(self) -> dict[str, int]:
        return self._added

    def __len__(self) -> int:
        return len(self._vocab)


def tokenizer(words: list[str] | None = None, plain: list[str] | None = None) -> Tokenizer:
    return Tokenizer(words or ["a", "Ġb", "Ã", "©"], ["<|im_end|>", "<|image_pad|>"], plain or [])


def vocabulary(processor_adds_brackets: bool) -> Vocabulary:
    return Vocabulary(
        pieces=[], banned=[], end_of_turn=1, image_token=9, processor_adds_brackets=processor_adds_brackets
    )


def test_alphabet_is_one_printable_character_for_each_byte() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert (alphabet[ord("a")], alphabet[ord(" ")], alphabet[ord("\n")]) == ("a", "Ġ", "Ċ")


def test_pieces_are_bytes_and_special_tokens_have_none() -> None:
    result = vocabulary_of(tokenizer(plain=["<tool_call>"]), QWEN, vocab_size=8)
    assert result.pieces == [b"a", b" b", b"\xc3", b"\xa9", b"", b"", b"<tool_call>", b""]


def test_every_added_token_but_end_of_turn_is_banned_and_so_is_the_padding() -> None:
    result = vocabulary_of(tokenizer(plain=["<tool_call>"]), QWEN, vocab_size=9)
    assert result.end_of_turn == 4
    assert result.banned == [5, 6, 7, 8]


def test_tokens_beyond_the_models_vocabulary_are_left_out() -> None:
    result = vocabulary_of(tokenizer(plain=["<tool_call>"]), QWEN, vocab_size=6)
    assert result.pieces == [b"a", b" b", b"\xc3", b"\xa9", b"", b""]
    assert result.banned == [5]


def test_the_familys_own_tags_stay_allowed_where_the_tokenizer_owns_them() -> None:
    plain = ["<think>", "</think>"]
    assert vocabulary_of(tokenizer(plain=plain), QWEN, vocab_size=8).banned == [5]
    assert vocabulary_of(tokenizer(plain=plain), QWEN3, vocab_size=8).banned == [5, 6, 7]


def test_a_tokenizer_without_the_familys_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="<IMG_CONTEXT>"):
        vocabulary_of(tokenizer(), FAMILIES["internvl"], vocab_size=6)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="not byte-level"):
        vocabulary_of(tokenizer(words=["▁word"]), QWEN, vocab_size=3)


def test_image_tokens_become_one_placeholder() -> None:
    assert collapse_image([5, 8, 9, 9, 9, 7, 6], vocabulary(False)) == [5, 8, 9, 7, 6]
    assert collapse_image([5, 8, 9, 9, 9, 7, 6], vocabulary(True)) == [5, 9, 6]


@pytest.mark.parametrize("prompt", [[], [5, 6], [9, 9, 5, 9]])
def test_a_prompt_without_exactly_one_image_is_refused(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="one image"):
        collapse_image(prompt, vocabulary(False))
