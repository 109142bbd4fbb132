"""`make convert`: a custom-layout checkpoint, converted, is the same model, and converts back to the same bytes."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

from learner.step import score
from mrpo.checkpoint_checks import check_checkpoint
from mrpo.convert.__main__ import main
from mrpo.convert.folder import KEPT_FOLDER, convert, plan_conversion
from mrpo.errors import ConfigError, DataError
from mrpo.families import FAMILIES
from mrpo.phantom.toy_models import build_toy_model
from mrpo.prompts import chat_messages
from mrpo.types import ScoreSample
from rollout.vocabulary import vocabulary_of
from tests.integration.custom_checkpoint import RAN, write_custom_checkpoint
from tests.integration.learner_world import make, spec

ROOT = Path(__file__).parents[2]
FAMILY = FAMILIES["internvl"]
COMPLETION = "<think>The liver lies left.</think><answer>Leber, 肝脏</answer><|im_end|>"
READ_BY_VLLM = (
    "architectures", "downsample_ratio", "dynamic_image_size", "force_image_size", "max_dynamic_patch",
    "min_dynamic_patch", "model_type", "ps_version", "select_layer", "use_thumbnail",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    root: Path
    custom: Path
    native: Path
    processor: Any
    images: list[Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("convert")
    custom, native = write_custom_checkpoint(root / "custom"), root / "native"
    assert main([str(custom), str(native)]) == 0
    images = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (448, 448, 3), dtype=np.uint8)
        images.append(root / f"{number}.png")
        Image.fromarray(pixels).save(images[-1])
    return World(root, custom, native, transformers.AutoProcessor.from_pretrained(native), images)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    return found


def assert_same_bytes(folder: Path, other: Path) -> None:
    mine, theirs = tensors(folder), tensors(other)
    assert mine.keys() == theirs.keys() and mine
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


def requests(world: World) -> Iterator[tuple[str, Path | None]]:
    """Native prompts: with an image of exactly one tile, and of text alone."""
    for image in (*world.images, None):
        content = chat_messages("Which organ?", FAMILY)
        if image is None:
            content[0]["content"] = [part for part in content[0]["content"] if part["type"] == "text"]
        text = world.processor.apply_chat_template(content, add_generation_prompt=True, tokenize=False)
        assert text.startswith("<|im_start|>user\n" + ("" if image is None else "<IMG_CONTEXT>\n") + "Which organ?")
        yield text, image


def samples_of(world: World) -> list[ScoreSample]:
    """The native prompts, each with the same completion."""
    samples = []
    for number, (text, image) in enumerate(requests(world)):
        images = None if image is None else [[Image.open(image)]]
        samples.append(
            ScoreSample(
                key=str(number),
                image=None if image is None else str(image),
                prompt_token_ids=list(world.processor(text=[text], images=images)["input_ids"][0]),
                completion_token_ids=world.processor.tokenizer(COMPLETION)["input_ids"],
            )
        )
    return samples


@contextmanager
def scored_by_vllm(world: World, folder: Path, placeholder: str) -> Iterator[Callable[[], list[Any]]]:
    """Start vLLM on `folder`; what is yielded waits for its answers to all requests."""
    asked = [
        (text.replace("<IMG_CONTEXT>", placeholder) + COMPLETION, None if image is None else str(image))
        for text, image in requests(world)
    ]
    files = [world.root / f"{folder.name}-{name}.json" for name in ("requests", "scores")]
    files[0].write_text(json.dumps(asked))
    command = [sys.executable, "-m", "tests.integration.custom_layout_scores", str(folder), *map(str, files)]
    vllm = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def answers() -> list[Any]:
        output, _ = vllm.communicate(timeout=400)
        assert vllm.returncode == 0, output[-4000:]
        return list(json.loads(files[1].read_text()))

    try:
        yield answers
    finally:
        vllm.kill()


def assert_agree(world: World, samples: list[ScoreSample], found: dict[int, list[float]], answers: list[Any]) -> None:
    for number, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        values = np.array(found[number])
        assert len(values) == len(sample.completion_token_ids)
        assert answer["ids"] == [*sample.prompt_token_ids, *sample.completion_token_ids]
        assert answer["ids"].count(world.processor.image_token_id) == (0 if sample.image is None else 256)
        difference = np.abs(values - answer["logprobs"][-len(values) :])
        assert difference.mean() < 1e-3, difference
        assert np.std(values) > 0.5, "log-probs that differ from token to token"


def test_a_converted_checkpoint_answers_as_its_original(world: World) -> None:
    """Our learner on the converted folder against vLLM's own support for the custom one: 448-pixel image, and text."""
    samples = samples_of(world)
    with scored_by_vllm(world, world.custom, "<image>") as answers:
        rank = make(replace(spec(world.root, "native"), max_pixels=10**6))
        found = score(rank, samples)
        given = answers()
    assert {answer["model"] for answer in given} == {"InternVLChatConfig"}
    assert_agree(world, samples, found, given)
    assert np.abs(np.array(found[0]) - found[1]).mean() > 1e-2, "the image is seen"
    assert not (world.custom / RAN).exists(), "code of a checkpoint never runs"


@pytest.mark.slow
def test_vllm_loads_the_native_folder_and_answers_alike(world: World) -> None:
    samples = samples_of(world)
    with scored_by_vllm(world, world.native, "<IMG_CONTEXT>") as answers:
        rank = make(replace(spec(world.root, "native"), max_pixels=10**6))
        found = score(rank, samples)
        given = answers()
    assert {answer["model"] for answer in given} == {"InternVLConfig"}
    assert_agree(world, samples, found, given)


def test_the_native_folder_loads_without_a_missing_or_unexpected_weight(world: World) -> None:
    model, info = transformers.InternVLForConditionalGeneration.from_pretrained(world.native, output_loading_info=True)
    assert not any(info.values()), info
    assert model.generation_config.eos_token_id == [257, 258, 256] and model.generation_config.pad_token_id == 256
    assert model.config.text_config.eos_token_id == 258 == world.processor.tokenizer.eos_token_id
    assert check_checkpoint(world.native) is FAMILY
    assert not list(world.native.rglob("*.py")), "no code is carried along"
    assert (world.native / "LICENSE").read_text() == "MIT\n"


def test_both_image_settings_files_say_the_same(world: World) -> None:
    alone = transformers.AutoImageProcessor.from_pretrained(world.native)
    assert alone.to_dict() == world.processor.image_processor.to_dict()
    assert (alone.min_patches, alone.max_patches, alone.crop_to_patches) == (1, 12, True)
    assert world.processor.image_seq_length == 256


def test_no_token_changes_its_id(world: World) -> None:
    ids = json.loads((world.custom / "added_tokens.json").read_text())
    tokenizer = world.processor.tokenizer
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert set(tokenizer.get_added_vocab()) - set(ids) == {"<video>"}
    beyond = tokenizer.convert_tokens_to_ids("<video>")  # the embeddings' 269 rows, as in the published native folders
    assert beyond == len(tokenizer) - 1 == 269
    assert set(ids.values()) - set(vocabulary_of(tokenizer, FAMILY, 269).banned) == {258}, "only <|im_end|> is sampled"
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    assert [getattr(tokenizer, name) for name in names] == ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rendered = world.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered == turns


def test_there_and_back_is_the_same_in_every_byte(world: World, tmp_path: Path) -> None:
    """Also in bfloat16, in other files, and for files that describe the checkpoint."""
    custom = write_custom_checkpoint(tmp_path / "custom", dtype=torch.bfloat16, num_shards=3)
    convert(plan_conversion(custom), tmp_path / "native", file_bytes=300_000)
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 2
    convert(plan_conversion(tmp_path / "native"), tmp_path / "back")
    assert_same_bytes(tmp_path / "back", custom)
    for file in custom.iterdir():
        if file.suffix in (".json", ".txt") and file.name != "model.safetensors.index.json":
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    model = transformers.InternVLForConditionalGeneration.from_pretrained(tmp_path / "native")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_back_and_there_is_the_same_in_every_byte(tied: bool, world: World, tmp_path: Path) -> None:
    """A native checkpoint that was never custom: a toy, whose head is tied, or one as training saves it."""
    native = tmp_path / "native"
    if tied:
        build_toy_model("internvl", native, corpus=["The organ is the liver."] * 4, image_size=56)
    else:
        model = transformers.InternVLForConditionalGeneration.from_pretrained(world.native)
        model.save_pretrained(native)
        world.processor.save_pretrained(native)
    convert(plan_conversion(native), tmp_path / "custom")
    assert json.loads((tmp_path / "custom" / "config.json").read_text())["model_type"] == "internvl_chat"
    convert(plan_conversion(tmp_path / "custom"), tmp_path / "again")
    assert_same_bytes(tmp_path / "again", native)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "again")
    before = transformers.AutoProcessor.from_pretrained(native)
    assert processor.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert processor.image_seq_length == before.image_seq_length


def test_a_derived_config_is_what_the_published_one_says(world: World, tmp_path: Path) -> None:
    native = tmp_path / "native"
    shutil.copytree(world.native, native)
    shutil.rmtree(native / KEPT_FOLDER)
    convert(plan_conversion(native), tmp_path / "custom")
    derived = json.loads((tmp_path / "custom" / "config.json").read_text())
    original = json.loads((world.custom / "config.json").read_text())
    assert {name: derived[name] for name in READ_BY_VLLM} == {name: original[name] for name in READ_BY_VLLM}
    for section in ("llm_config", "vision_config"):
        shared = derived[section].keys() & original[section].keys() - {"eos_token_id", "drop_path_rate"}
        assert len(shared) > 15
        assert {name: derived[section][name] for name in shared} == {name: original[section][name] for name in shared}
    assert derived["llm_config"]["eos_token_id"] == 258


def edit_config(folder: Path, section: str, **fields: object) -> None:
    file = folder / "config.json"
    tree = json.loads(file.read_text())
    tree[section].update(fields)
    file.write_text(json.dumps(tree))


def test_what_does_not_fit_is_refused_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(world.custom, short)
    edit_config(short, "llm_config", vocab_size=266)
    with pytest.raises(ConfigError, match=r"no token '<IMG_CONTEXT>' with a row in the embeddings \(266 rows\)"):
        convert(plan_conversion(short), tmp_path / "out")
    changed = tmp_path / "changed"
    shutil.copytree(world.native, changed)
    edit_config(changed, "text_config", rms_norm_eps=1e-5)
    with pytest.raises(ConfigError, match=f"no longer describes .*delete {changed / KEPT_FOLDER}"):
        plan_conversion(changed)
    with pytest.raises(ConfigError, match="exists already"):
        convert(plan_conversion(world.custom), changed)
    cut = tmp_path / "cut"
    shutil.copytree(world.custom, cut)
    planned = plan_conversion(cut)
    file = cut / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match="ends inside tensor"):
        convert(planned, tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["changed", "cut", "short"]
