"""Parameters by arithmetic against transformers' own classes, built without memory on the meta device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
import yaml

from mrpo.choices import ToyFamily
from mrpo.config import ModelConfig
from mrpo.families import family_of
from mrpo.phantom.toy_models import MAX_VOCAB_SIZE, RECIPES
from mrpo.plan.architecture import FACTS, Architecture, architecture_of, published
from mrpo.plan.parameters import count, tensors_of

CONFIGS = {"qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig", "internvl": "InternVLConfig"}
FILES = sorted(FACTS.glob("*.yaml"))


def on_meta(config: Any, model_type: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = getattr(transformers, family_of(model_type).model_class)(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def counts(architecture: Architecture, **settings: Any) -> Any:
    defaults = {"lora_rank": 0, "lora_targets": (), "freeze_tower": False, "freeze_projector": False, "small_below": 0}
    return count(architecture, **(defaults | settings))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_models_parameters_are_those_transformers_makes(file: Any) -> None:
    facts = yaml.safe_load(file.read_text())
    architecture = published(facts["hub_ids"][0])
    assert architecture is not None
    keys = ("text_config", "vision_config", "tie_word_embeddings", "downsample_ratio")
    settings = {key: facts[key] for key in keys if key in facts}
    if facts["model_type"] == "internvl":
        settings["text_config"] = {"model_type": "qwen2"} | settings["text_config"]
    config = getattr(transformers, CONFIGS[facts["model_type"]])(**settings)
    expected = on_meta(config, facts["model_type"])
    assert dict(tensors_of(architecture)) == expected
    assert counts(architecture).total == facts["num_parameters"] == sum(map(math.prod, expected.values()))


@pytest.mark.parametrize("family", list(ToyFamily))
def test_a_toys_parameters_are_those_transformers_makes(family: ToyFamily) -> None:
    class Words:
        def __len__(self) -> int:
            return MAX_VOCAB_SIZE

        def convert_tokens_to_ids(self, token: str) -> int:
            return 0

    expected = on_meta(RECIPES[family.value].config(Words(), 84), family.value)
    assert dict(tensors_of(architecture_of(ModelConfig(toy_family=family)))) == expected
