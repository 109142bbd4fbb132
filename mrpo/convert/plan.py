"""Which bytes of the source make which tensor of the result. Nothing is read but headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mrpo.convert.tensor_names import Pair, saved_name
from mrpo.errors import DataError
from mrpo.weight_files import StoredTensor

SHOWN = 3  # names in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor of the result: the pieces' bytes one after another, since all cuts are along dimension 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredTensor, ...]

    @property
    def num_bytes(self) -> int:
        """Of all pieces."""
        return sum(piece.num_bytes for piece in self.pieces)


def to_native(pairs: Iterable[Pair], source: Mapping[str, StoredTensor]) -> list[NewTensor]:
    """The native tensors, from those of the custom layout.

    Raises:
        DataError: tensors are missing or unknown, or a fused one cannot be cut into three.
    """
    wanted = list(pairs)
    _check_names({pair.custom for pair in wanted}, {pair.custom for pair in wanted if not pair.optional}, source)
    found = []
    for pair in wanted:
        tensor = source.get(pair.custom)
        if tensor is not None:
            found += [_new(name, [part]) for name, part in zip(pair.native, _cut(tensor, pair), strict=True)]
    return found


def to_custom(pairs: Iterable[Pair], source: Mapping[str, StoredTensor]) -> list[NewTensor]:
    """The custom layout's tensors, from the native ones in any spelling.

    Raises:
        DataError: tensors are missing or unknown, or parts that do not fit together.
    """
    named = {saved_name(name): tensor for name, tensor in source.items()}
    if len(named) != len(source):
        raise DataError(f"{_place(source)}: two spellings of one tensor's name; fetch the checkpoint again")
    wanted = list(pairs)
    _check_names(
        {name for pair in wanted for name in pair.native},
        {name for pair in wanted if not pair.optional for name in pair.native},
        named,
    )
    return [
        _new(pair.custom, [named[name] for name in pair.native])
        for pair in wanted
        if all(name in named for name in pair.native)
    ]


def _check_names(known: set[str], required: set[str], source: Mapping[str, StoredTensor]) -> None:
    for label, names in (("lacks", required - source.keys()), ("has unknown", source.keys() - known)):
        if names:
            shown = ", ".join(sorted(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            raise DataError(
                f"{_place(source)} {label} tensors: {shown}; only whole InternVL checkpoints with a Qwen2 language "
                "model are converted, without adapters or quantisation"
            )


def _place(source: Mapping[str, StoredTensor]) -> str:
    return str(next(iter(source.values())).file.parent)


def _cut(tensor: StoredTensor, pair: Pair) -> list[StoredTensor]:
    count = len(pair.native)
    if count == 1:
        return [tensor]
    if not tensor.shape or tensor.shape[0] % count:
        raise DataError(f"{tensor.file}: {tensor.name} of shape {list(tensor.shape)} is no {count} parts of equal size")
    num_bytes = tensor.num_bytes // count
    return [
        StoredTensor(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=(tensor.shape[0] // count, *tensor.shape[1:]),
            file=tensor.file,
            start=tensor.start + number * num_bytes,
            num_bytes=num_bytes,
        )
        for number in range(count)
    ]


def _new(name: str, pieces: list[StoredTensor]) -> NewTensor:
    first = pieces[0]
    if any((piece.dtype, piece.shape) != (first.dtype, first.shape) for piece in pieces):
        parts = ", ".join(f"{piece.name} {piece.dtype} {list(piece.shape)}" for piece in pieces)
        raise DataError(f"{first.file.parent}: parts of {name} differ in type or shape: {parts}")
    shape = first.shape if len(pieces) == 1 else (len(pieces) * first.shape[0], *first.shape[1:])
    return NewTensor(name=name, dtype=first.dtype, shape=shape, pieces=tuple(pieces))
