"""Toy models are read by transformers like the checkpoints they stand for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrpo.errors import ConfigError
from mrpo.families import FAMILIES
from mrpo.phantom.toy_models import build_toy_model
from mrpo.prompts import chat_messages
from mrpo.types import RolloutRequest
from rollout.request import build_completion
from rollout.vocabulary import collapse_image, vocabulary_of

CORPUS = ["The scan shows a liver.", "<think>The organ is the liver. It lies left.</think><answer>left</answer>"] * 3


@pytest.fixture(scope="module", params=list(FAMILIES))
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("toys") / request.param
    build_toy_model(request.param, folder, corpus=CORPUS)
    return request.param, folder


def inputs(processor: Any, model_type: str, width: int, height: int) -> Any:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    messages = chat_messages("Which organ?", FAMILIES[model_type], terse=True)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert FAMILIES[model_type].image_placeholder in text
    return processor(text=[text], images=[Image.fromarray(pixels)], return_tensors="pt")


def test_loads_by_the_auto_classes_as_its_family(toy: tuple[str, Path]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model_type, folder = toy
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == FAMILIES[model_type].model_class
    assert type(processor).__name__ == FAMILIES[model_type].processor_class
    assert model.config.get_text_config().vocab_size == len(processor.tokenizer)
    assert 500_000 < sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    generated = model.generate(**inputs(processor, model_type, 84, 84), max_new_tokens=4)
    assert generated.shape[0] == 1


@pytest.mark.parametrize(("size", "limits"), [((84, 84), (9, 9)), ((1024, 700), (6, 12)), ((40, 60), (6, 12))])
def test_any_image_is_about_nine_tokens(toy: tuple[str, Path], size: tuple[int, int], limits: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    model_type, folder = toy
    processor: Any = AutoProcessor.from_pretrained(folder)
    token = processor.tokenizer.convert_tokens_to_ids(FAMILIES[model_type].image_token)
    count = int((inputs(processor, model_type, *size)["input_ids"] == token).sum())
    assert limits[0] <= count <= limits[1]


def test_text_of_any_kind_survives_the_tokenizer(toy: tuple[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(toy[1])
    text = "<think>The liver, 3.5 cm – café 腺癌.</think>\n<answer>left</answer>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer("The organ is the liver.")["input_ids"]) == 6


def test_completions_decode_to_steps_by_the_tokenizers_bytes(toy: tuple[str, Path]) -> None:
    from transformers import AutoTokenizer

    model_type, folder = toy
    family = FAMILIES[model_type]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    vocabulary = vocabulary_of(tokenizer, family, len(tokenizer))
    text = f"<{family.think_tag}>The organ is the liver. Größe 腺癌.</{family.think_tag}><answer>left</answer>"
    ids = [*tokenizer(text)["input_ids"], vocabulary.end_of_turn]
    request = RolloutRequest(
        prompt_id="p", sample_index=0, question="?", image="", seed=0, temperature=1.0, top_p=1.0, max_new_tokens=99
    )
    completion = build_completion(
        request,
        vocabulary,
        think_tag=family.think_tag,
        step_strategy="sentence",
        prompt_token_ids=[],
        completion_token_ids=ids,
        rollout_logprobs=[0.0] * len(ids),
        policy_version=0,
        started_s=0.0,
        ended_s=0.0,
    )
    assert completion.text == text
    assert completion.answer == "left"
    assert [step.text for step in completion.steps] == ["The organ is the liver.", "Größe 腺癌."]
    for step, (start, stop) in zip(completion.steps, completion.spans, strict=True):
        assert step.text in tokenizer.decode(ids[start:stop])  # its first token may begin with the tag's ">"
        assert step.text not in tokenizer.decode(ids[start + 1 : stop])
        assert step.text not in tokenizer.decode(ids[start : stop - 1])


def test_special_tokens_are_banned_and_prompts_collapse_to_the_placeholder(toy: tuple[str, Path]) -> None:
    from transformers import AutoProcessor

    model_type, folder = toy
    family = FAMILIES[model_type]
    processor: Any = AutoProcessor.from_pretrained(folder)
    vocabulary = vocabulary_of(processor.tokenizer, family, len(processor.tokenizer))
    banned = set(processor.tokenizer.convert_ids_to_tokens(vocabulary.banned))
    assert banned >= {"<|endoftext|>", "<|im_start|>", family.image_token}
    assert family.end_of_turn not in banned
    messages = chat_messages("Which organ?", family, terse=True)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expanded = inputs(processor, model_type, 84, 84)["input_ids"][0].tolist()
    assert collapse_image(expanded, vocabulary) == processor.tokenizer(text)["input_ids"]


def test_the_same_arguments_give_the_same_files(toy: tuple[str, Path], tmp_path: Path) -> None:
    model_type, folder = toy
    build_toy_model(model_type, tmp_path / "again", corpus=CORPUS)
    build_toy_model(model_type, tmp_path / "other", corpus=CORPUS, seed=1)
    assert digest(tmp_path / "again") == digest(folder)
    weights = "model.safetensors"
    assert digest(tmp_path / "other")[weights] != digest(folder)[weights]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_sizes_that_do_not_fit_the_patches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 28"):
        build_toy_model("qwen2_5_vl", tmp_path, corpus=CORPUS, image_size=100)
