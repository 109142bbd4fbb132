"""The current weights as a plain Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from learner.rank import Rank
from learner.weight_source import WeightMeta
from mrpo.atomic import fsync

FILE_BYTES = 4 * 1024**3  # weights of one file, as readers like it


@dataclass(frozen=True, slots=True, kw_only=True)
class HfModel:
    """What goes into the folder beside the weights, and what weights will come."""

    config: Any
    generation_config: Any
    processor: Any
    metadata: list[WeightMeta]  # in the order of the weights


def hf_model(rank: Rank) -> HfModel:
    """Of this rank; nothing is gathered."""
    return HfModel(
        config=rank.model.config,
        generation_config=rank.model.generation_config,
        processor=rank.processor,
        metadata=rank.source.metadata(),
    )


def write_hf_folder(folder: Path, model: HfModel, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Write configuration, weights, tokenizer and processor into a new folder, on disk when it returns.

    transformers' own `save_pretrained` cannot gather partitioned weights piece by piece; names and layout are its.
    """
    files = _plan(model.metadata)
    folder.mkdir()
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    for file_name, metas in files.items():
        save_file(dict(_take(weights, len(metas))), folder / file_name, metadata={"format": "pt"})
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(meta.num_bytes for metas in files.values() for meta in metas)},
            "weight_map": {meta.name: file_name for file_name, metas in files.items() for meta in metas},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)


def _take(weights: Iterator[tuple[str, Tensor]], count: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in islice(weights, count):
        yield name, tensor.cpu().contiguous()


def _plan(metadata: list[WeightMeta]) -> dict[str, list[WeightMeta]]:
    """File name → its tensors, in order."""
    parts: list[list[WeightMeta]] = [[]]
    used = 0
    for meta in metadata:
        if parts[-1] and used + meta.num_bytes > FILE_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(meta)
        used += meta.num_bytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts)}
