"""Whether a checkpoint has an output layer of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mrpo.weight_files import ties_embeddings


@pytest.mark.parametrize(
    ("config", "names", "ties"),
    [
        ({}, ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"], False),
        ({}, ["model.embed_tokens.weight"], True),
        ({"tie_word_embeddings": True}, ["model.embed_tokens.weight", "lm_head.weight"], True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, ["lm_head.weight"], False),
        ({"text_config": {"tie_word_embeddings": False}}, ["model.embed_tokens.weight"], False),
    ],
)
def test_the_configuration_decides_and_the_weights_where_it_is_silent(
    config: dict[str, Any], names: list[str], ties: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: np.zeros(2, dtype=np.float32) for name in names}, tmp_path / "model.safetensors")
    assert ties_embeddings(tmp_path) == ties
