"""Parameters by arithmetic against transformers' own classes, built without memory on the meta device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file

from mrpo.choices import ToyFamily
from mrpo.config import ModelConfig
from mrpo.errors import ConfigError
from mrpo.families import CUSTOM_LAYOUT, family_of
from mrpo.phantom.toy_models import MAX_VOCAB_SIZE, RECIPES
from mrpo.plan.architecture import FACTS, Architecture, architecture_of, published
from mrpo.plan.parameters import count, tensors_of

CONFIGS = {"qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig", "internvl": "InternVLConfig"}
FILES = sorted(FACTS.glob("*.yaml"))


class Words:
    """As much of a tokenizer as a toy's configuration asks for."""

    def __len__(self) -> int:
        return MAX_VOCAB_SIZE

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0


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
    expected = on_meta(RECIPES[family.value].config(Words(), 84), family.value)
    assert dict(tensors_of(architecture_of(ModelConfig(toy_family=family)))) == expected


def test_a_folders_weights_say_what_its_configuration_does_not(tmp_path: Path) -> None:
    recipe = RECIPES["internvl"].config(Words(), 84)
    recipe.save_pretrained(tmp_path)
    said = architecture_of(ModelConfig(path=str(tmp_path)))
    assert said.text.tied and said.source == str(tmp_path / "config.json")
    assert dict(tensors_of(said)) == dict(tensors_of(architecture_of(ModelConfig(toy_family=ToyFamily.INTERNVL))))

    silent = json.loads((tmp_path / "config.json").read_text())
    for section in (silent, silent["text_config"]):
        section.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(silent))
    with pytest.raises(ConfigError, match=r"config\.json does not say tie_word_embeddings, .* or bring the weights"):
        architecture_of(ModelConfig(path=str(tmp_path)))
    save_file({"language_model.lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert not architecture_of(ModelConfig(path=str(tmp_path))).text.tied


def test_the_custom_layout_is_answered_with_the_command_that_rewrites_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": CUSTOM_LAYOUT}))
    with pytest.raises(ConfigError, match=f"make convert MODEL={tmp_path}"):
        architecture_of(ModelConfig(path=str(tmp_path)))
