"""Checkpoint folders that pass every static check and hold next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mrpo.families import FAMILIES

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_checkpoint(folder: Path, model_type: str = "qwen2_5_vl") -> Path:
    """Config, tokenizer and processor files, and two shards of one tensor each; returns the folder."""
    family = FAMILIES[model_type]
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [family.image_token, family.end_of_turn]
    for name, tree in {
        "config.json": {"model_type": model_type},
        "preprocessor_config.json": {"size": {}},
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
        "tokenizer.json": {"added_tokens": [{"id": index, "content": token} for index, token in enumerate(tokens)]},
        "model.safetensors.index.json": {"weight_map": dict(zip("ab", SHARDS, strict=True))},
    }.items():
        (folder / name).write_text(json.dumps(tree))
    for name, shard in zip("ab", SHARDS, strict=True):
        save_file({name: torch.ones(4, 3)}, folder / shard)
    return folder
