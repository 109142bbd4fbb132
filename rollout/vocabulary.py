"""What the sampler and the decoder need to know of a tokenizer, found once when an engine starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mrpo.errors import ConfigError
from mrpo.families import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Letters: V ids the model can emit, which may be more than the tokenizer knows."""

    pieces: list[bytes]  # [V] bytes a token adds to the text; none for special tokens and unknown ids
    banned: list[int]  # ids the sampler must never emit
    end_of_turn: int
    image_token: int
    processor_adds_brackets: bool  # the processor puts a token before and after an image's tokens


def vocabulary_of(tokenizer: Any, family: Family, vocab_size: int) -> Vocabulary:
    """Read a byte-level BPE tokenizer.

    Every added token but end-of-turn and the family's own tags is banned: an image placeholder in a completion would
    break the learner's forward pass, and a chat-control token would end or fake a turn. So is the padding of the
    model's vocabulary, which decodes to nothing.

    Raises:
        ConfigError: the tokenizer lacks a token of the family, or is not byte-level.
    """
    byte_of_char = {char: byte for byte, char in byte_alphabet().items()}
    added: dict[str, int] = tokenizer.get_added_vocab()
    for token in (family.end_of_turn, family.image_token):
        if token not in added:
            raise ConfigError(
                f"the tokenizer has no added token {token!r}, which family {family.model_type!r} needs; "
                "use the tokenizer of the checkpoint"
            )
    silent = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    pieces = [b""] * vocab_size
    for token, index in tokenizer.get_vocab().items():
        if index >= vocab_size:
            continue  # InternVL3's video token has no row in the model, which can neither read nor emit it
        if token in added:
            pieces[index] = b"" if token in silent else token.encode()
            continue
        try:
            pieces[index] = bytes(byte_of_char[char] for char in token)
        except KeyError:
            raise ConfigError(f"token {token!r} is not byte-level BPE, which step spans rely on") from None
    tags = {f"<{slash}{name}>" for name in (family.think_tag, "answer") for slash in ("", "/")}
    allowed = tags | {family.end_of_turn}
    banned = {index for token, index in added.items() if token not in allowed and index < vocab_size}
    banned.update(range(len(tokenizer), vocab_size))
    return Vocabulary(
        pieces=pieces,
        banned=sorted(banned),
        end_of_turn=added[family.end_of_turn],
        image_token=added[family.image_token],
        processor_adds_brackets=family.image_placeholder == family.image_token,
    )


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    alphabet.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return alphabet


def collapse_image(prompt_token_ids: list[int], vocabulary: Vocabulary) -> list[int]:
    """Undo the processor's expansion of the one image: its tokens become the single placeholder it started from.

    Raises:
        ValueError: not exactly one run of image tokens.
    """
    first = next((i for i, token in enumerate(prompt_token_ids) if token == vocabulary.image_token), -1)
    stop = first
    while 0 <= stop < len(prompt_token_ids) and prompt_token_ids[stop] == vocabulary.image_token:
        stop += 1
    bracket = int(vocabulary.processor_adds_brackets)
    before, after = prompt_token_ids[: max(0, first - bracket)], prompt_token_ids[stop + bracket :]
    if first < 0 or vocabulary.image_token in after:
        raise ValueError(f"a prompt must hold one image, as one run of token {vocabulary.image_token}")
    return [*before, vocabulary.image_token, *after]
