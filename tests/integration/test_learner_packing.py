"""Samples packed into one row are computed as if each were alone, in every family, with images and without."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from learner.group import DeepSpeedLearner
from learner.images import ImageStore
from learner.inputs import InputBuilder
from learner.model import load_model
from learner.policy import Policy
from learner.sft import Supervision
from learner.step import score, train_step
from mrpo.batching import plan_micro_batches
from mrpo.errors import ConfigError, DataError
from mrpo.families import family_of
from mrpo.prompts import chat_messages
from mrpo.types import LearnStats, SftSample, TrainSample
from tests.integration.learner_world import FAMILIES, build_world, make, relative_difference, spec, to_score

VISION_TOKENS = {
    "qwen2_5_vl": ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen3_vl": ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"],
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
}
QUESTIONS = ("Where?", "Where is the finding of the liver?", "How many?", "What is it, and on which side does it lie?")


@dataclass(kw_only=True)
class World:
    """One family's policy without DeepSpeed, the same checkpoint as transformers loads it, and samples."""

    processor: Any
    policy: Policy
    inputs: InputBuilder
    plain: Any
    samples: list[TrainSample]
    prompts: dict[str, dict[str, Any]]  # what the processor makes of each sample's prompt, by key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    build_world(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, folder: Path) -> World:
    """Two completions of each of four images (three sizes of grid for the Qwen families), and two without one."""
    torch.set_num_threads(1)  # as a rank here does
    family = family_of(request.param)
    cpu = torch.device("cpu")
    processor = processor_of(folder, request.param)
    samples, prompts = draw(folder, request.param, processor)
    model = load_model(str(folder / family.model_type), family, dtype=torch.float32, device=cpu)
    plain = getattr(transformers, family.model_class).from_pretrained(folder / family.model_type)
    return World(
        processor=processor,
        policy=Policy(model, chunk_tokens=32),
        inputs=InputBuilder(model, ImageStore(processor, family, max_pixels=10_000)),
        plain=plain,
        samples=samples,
        prompts=prompts,
    )


def processor_of(folder: Path, name: str) -> Any:
    return getattr(transformers, family_of(name).processor_class).from_pretrained(folder / name)


def draw(folder: Path, name: str, processor: Any) -> tuple[list[TrainSample], dict[str, dict[str, Any]]]:
    family = family_of(name)
    rng = np.random.default_rng(0)
    samples: list[TrainSample] = []
    prompts: dict[str, dict[str, Any]] = {}
    shown = [str(folder / f"{number}.png") for number in range(4)] * 2
    for number, image in enumerate([*shown, None, None]):
        messages = chat_messages(QUESTIONS[number % 4], family, terse=True)
        if image is None:
            messages[0]["content"] = messages[0]["content"][1:]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = {} if image is None else {"images": [[Image.open(image)]]}
        outputs = processor(text=[text], return_tensors="pt", **images)
        length = int(rng.integers(3, 14))
        samples.append(
            TrainSample(
                key=f"q{number}#0",
                image=image,
                prompt_token_ids=outputs["input_ids"][0].tolist(),
                completion_token_ids=rng.integers(0, 200, length).tolist(),
                advantages=np.abs(rng.normal(size=length)).tolist(),
                rollout_logprobs=[-5.0] * length,
                policy_version=0,
            )
        )
        prompts[samples[-1].key] = dict(outputs)
    return samples, prompts


def packed(world: World, samples: Sequence[TrainSample]) -> list[Tensor]:
    """Log-probs of each sample's completion, all samples in one row."""
    batch = world.inputs.build(samples)
    assert batch.input_ids.shape == (1, sum(len(s.prompt_token_ids) + len(s.completion_token_ids) for s in samples))
    logprobs, _ = world.policy(batch)
    return [logprobs[row, : len(sample.completion_token_ids)] for row, sample in enumerate(samples)]


def alone(world: World, sample: TrainSample) -> Tensor:
    """The same of one sample by a plain forward pass of transformers on what the processor made."""
    inputs = dict(world.prompts[sample.key])
    completion = torch.tensor([sample.completion_token_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completion], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completion)], dim=1)
    logits = world.plain(**inputs).logits[0, -completion.shape[1] - 1 : -1]
    found: Tensor = logits.log_softmax(-1).gather(1, completion[0][:, None])[:, 0]
    return found


def gradient(model: Any, logprobs: Sequence[Tensor], samples: Sequence[TrainSample]) -> Tensor:
    """Of the log-probs weighted by the advantages, flat; what never got one counts as zero."""
    model.zero_grad(set_to_none=True)
    pairs = zip(logprobs, samples, strict=True)
    torch.stack([(values * torch.tensor(sample.advantages)).sum() for values, sample in pairs]).sum().backward()
    flat = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return torch.cat([part.flatten() for part in flat])


def test_the_world_mixes_grids_and_lengths(world: World) -> None:
    lengths = {len(sample.prompt_token_ids) for sample in world.samples}
    assert len(lengths) >= 4
    if "image_grid_thw" in world.prompts["q0#0"]:
        assert len({tuple(world.prompts[f"q{n}#0"]["image_grid_thw"][0].tolist()) for n in range(4)}) >= 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_the_plain_transformers_forward(world: World, checkpointing: bool) -> None:
    """Log-probs of each completion, and the gradient of every parameter; images and text-only samples mixed."""
    world.policy.model.train()
    if checkpointing:
        world.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        mine = packed(world, world.samples)
        found = gradient(world.policy.model, mine, world.samples)
    finally:
        world.policy.model.gradient_checkpointing_disable()
    theirs = [alone(world, sample) for sample in world.samples]
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert relative_difference(found, gradient(world.plain, theirs, world.samples)) < 1e-5


def test_packed_equals_one_sample_a_micro_batch(world: World) -> None:
    together = packed(world, world.samples)
    apart = [packed(world, [sample])[0] for sample in world.samples]
    for mine, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    model = world.policy.model
    assert relative_difference(gradient(model, together, world.samples), gradient(model, apart, world.samples)) < 1e-5


@torch.no_grad()
def test_the_order_of_samples_does_not_matter(world: World) -> None:
    expected = packed(world, world.samples)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(world.samples))
        for index, mine in zip(order, packed(world, [world.samples[i] for i in order]), strict=True):
            torch.testing.assert_close(mine, expected[index], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 5, 9])
def test_no_token_reaches_another_sample(world: World, changed: int) -> None:
    """Not to 1e-5: to the bit."""
    expected = packed(world, world.samples)
    sample = world.samples[changed]
    last_word = 7 if sample.prompt_token_ids[-1] != 7 else 8
    other = replace(
        sample,
        prompt_token_ids=[*sample.prompt_token_ids[:-1], last_word],
        completion_token_ids=[(token + 1) % 200 for token in sample.completion_token_ids],
    )
    samples = [*world.samples[:changed], other, *world.samples[changed + 1 :]]
    for index, mine in enumerate(packed(world, samples)):
        assert torch.equal(mine, expected[index]) == (index != changed)


@torch.no_grad()
def test_samples_show_their_own_image(world: World) -> None:
    """An image of the same size in one sample changes that sample, and no other."""
    samples = [world.samples[0], replace(world.samples[4], key="other"), world.samples[8]]
    expected = packed(world, samples)
    assert samples[1].image == samples[0].image != world.samples[1].image
    samples[1] = replace(samples[1], image=world.samples[1].image)
    found = packed(world, samples)
    # Not to the bit: the vision tower now takes two images at one time.
    moved = [float((mine - theirs).abs().max()) for mine, theirs in zip(found, expected, strict=True)]
    assert moved[0] < 1e-5 and moved[1] > 1e-3 and moved[2] < 1e-5


def test_without_an_image_the_vision_tower_gets_a_gradient_of_zeros(world: World) -> None:
    """So that every rank has the same gradients to reduce; and the blank image changes no number."""
    text = world.samples[8:]
    model = world.policy.model
    logprobs = packed(world, text)
    for mine, sample in zip(logprobs, text, strict=True):
        torch.testing.assert_close(mine, alone(world, sample), atol=1e-5, rtol=0)
    gradient(model, logprobs, text)
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    family = family_of(model.config.model_type)
    moved = [name for name, parameter in model.named_parameters() if parameter.grad.any()]
    assert moved and not [
        name for name in moved if name.startswith((*family.vision_prefixes, *family.projector_prefixes))
    ]


def test_image_tokens_without_an_image_are_named(world: World) -> None:
    sample = replace(world.samples[0], image=None)
    for refuses in (world.inputs.check, world.inputs.build):
        with pytest.raises(DataError, match=r"completion q0#0: its prompt holds \d+ image tokens, but it has no image"):
            refuses([sample])
    lost = replace(world.samples[8], image=world.samples[0].image)
    with pytest.raises(DataError, match=r"completion q8#0: its prompt holds 0 image tokens, but image .* gives \d+"):
        world.inputs.check([lost])


def test_every_vision_token_of_a_family_is_known(world: World) -> None:
    sample = world.samples[0]
    tokenizer = world.processor.tokenizer
    assert not world.inputs.has_vision_token(sample)
    for token in VISION_TOKENS[world.plain.config.model_type]:
        (planted,) = tokenizer(token, add_special_tokens=False)["input_ids"]
        ids = [*sample.completion_token_ids[:2], planted]
        assert world.inputs.has_vision_token(replace(sample, completion_token_ids=ids)), token
    ids = tokenizer("<think>A liver.</think><|im_end|>", add_special_tokens=False)["input_ids"]
    assert not world.inputs.has_vision_token(replace(sample, completion_token_ids=ids))


@pytest.mark.parametrize(("family", "token"), [("internvl", "<img>"), ("qwen3_vl", "<|video_pad|>")])
def test_a_planted_vision_token_is_left_out_and_counted(folder: Path, family: str, token: str) -> None:
    rank = make(spec(folder, family))
    samples, _ = draw(folder, family, rank.processor)
    planted = rank.processor.tokenizer.convert_tokens_to_ids(token)
    marked = replace(samples[0], completion_token_ids=[planted, *samples[0].completion_token_ids[1:]])
    stats = train_step(rank, [marked, *samples[1:]], progress=0.0)
    assert stats.extra["dropped_vision_token"] == 1.0
    assert stats.num_tokens == sum(len(sample.completion_token_ids) for sample in samples[1:])
    with pytest.raises(DataError, match=f"vision token cannot be scored: {marked.key}"):
        score(rank, to_score([marked]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_demonstration_without_an_image_is_learned(folder: Path, name: str) -> None:
    """Its prompt is what the processor makes of the text alone; beside one with an image, and alone in a step."""
    rank = make(spec(folder, name))
    text = SftSample(image=None, question=QUESTIONS[0], target="The liver.")
    shown = SftSample(image=str(folder / "2.png"), question=QUESTIONS[2], target="Two lesions.")
    supervision = Supervision(rank)
    expected, _ = draw(folder, name, rank.processor)
    found = supervision.tokenize([text, shown])
    assert [sample.prompt_token_ids for sample in found] == [expected[8].prompt_token_ids, expected[2].prompt_token_ids]
    for examples in ([text, shown], [text]):
        stats = supervision.step(examples, num_steps=4, lr=1e-3, warmup_share=0.0)
        assert np.isfinite(stats.loss) and stats.grad_norm > 0.0


def test_flash_attention_is_refused_before_loading(folder: Path) -> None:
    settings = spec(folder, attention="flash_attention_2")
    with pytest.raises(ConfigError, match=r"learner.attention=flash_attention_2, but the learner's device is cpu"):
        make(settings)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("family", "stage"), [("qwen3_vl", 3), ("internvl", 2)])
def test_a_rank_with_text_alone_keeps_step(folder: Path, family: str, stage: int) -> None:
    """Its collectives match those of the rank with images, and the loss is that of one rank."""
    drawn, _ = draw(folder, family, processor_of(folder, family))
    samples = [drawn[3], drawn[8]]
    lengths = [len(sample.prompt_token_ids) + len(sample.completion_token_ids) for sample in samples]
    assert plan_micro_batches(lengths, num_ranks=2, tokens_per_micro_batch=lengths[0]) == [[[0]], [[1]]]
    settings = spec(folder, family, zero_stage=stage, tokens_per_micro_batch=lengths[0])

    async def on_two_ranks() -> list[LearnStats]:
        learner = DeepSpeedLearner(replace(settings, learner=replace(settings.learner, num_ranks=2)))
        await learner.start()
        try:
            return [await learner.step(samples, progress=0.1 * number) for number in range(2)]
        finally:
            await learner.close()

    one = make(settings)
    expected = [train_step(one, samples, progress=0.1 * number) for number in range(2)]
    for mine, theirs in zip(asyncio.run(on_two_ranks()), expected, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
