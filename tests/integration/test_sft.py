"""Supervised training on real parts: a rank in this process, and the command as users run it."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import ExifTags, Image

from learner.checkpoint import load, save
from learner.group import DeepSpeedLearner
from learner.rank import Rank
from learner.sft import Supervision
from learner.step import score
from mrpo.choices import DataKind
from mrpo.compose import compose_config
from mrpo.config import LoraConfig, LossConfig
from mrpo.data.jsonl import write_jsonl
from mrpo.data.phantom import phantom_examples
from mrpo.errors import DataError
from mrpo.families import family_of
from mrpo.images import read_image
from mrpo.phantom.toy_models import build_toy_model
from mrpo.phantom.warm_start import tokenizer_corpus
from mrpo.prompt_tokens import check_prompts
from mrpo.prompts import chat_messages
from mrpo.rows import read_rows
from mrpo.run_reading import RunStatus, list_checkpoints, read_config, read_metrics, read_state
from mrpo.sft.heldout import read_heldout
from mrpo.sft.targets import Demonstration, demonstrations_of
from mrpo.sft.tokens import check_demonstrations
from mrpo.telemetry.table import Stage
from mrpo.telemetry.timeline import TIMELINE
from mrpo.types import Example, LearnStats, SftSample
from tests.integration.cluster_world import nodes, wait_for
from tests.integration.learner_world import FAMILIES, build_world, make, spec
from tests.integration.metrics_agreement import assert_every_panel_asks_for_what_was_exported
from tests.integration.metrics_readers import Endpoint
from tests.integration.test_train import interrupt, wait_for_steps
from tests.locations import REPOSITORY

TIMEOUT_S = 420.0
NUM_STEPS = 9
LORA = LoraConfig(r=4, alpha=8.0, dropout=0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    build_world(folder)
    return folder


def demonstrations(world: Path, count: int = 12) -> list[SftSample]:
    """Targets of different lengths that follow from the image."""
    return [
        SftSample(
            image=str(world / f"{number % 4}.png"),
            question="Where is the finding?",
            target="<think>" + "The organ is the liver. " * (1 + number % 4) + "</think>\n<answer>left</answer>",
        )
        for number in range(count)
    ]


def supervised_rank(world: Path, family: str = "qwen2_5_vl", *, lora: LoraConfig | None = None, **learner: Any) -> Rank:
    rank: Rank = make(spec(world, family, loss=LossConfig(beta=0.0), lora=lora, **learner))
    return rank


def steps(rank: Rank, samples: Sequence[SftSample], count: int, *, num_steps: int = 20) -> list[LearnStats]:
    supervision = Supervision(rank)
    return [supervision.step(samples, num_steps=num_steps, lr=5e-3, warmup_share=0.1) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_what_the_processor_writes(family: str, world: Path) -> None:
    rank = supervised_rank(world, family)
    samples = demonstrations(world)
    for sample, found in zip(samples, Supervision(rank).tokenize(samples), strict=True):
        text = rank.processor.apply_chat_template(
            chat_messages(sample.question, rank.family, terse=True), add_generation_prompt=True, tokenize=False
        )
        image = read_image(sample.image, max_pixels=rank.spec.max_pixels)
        assert found.prompt_token_ids == list(rank.processor(text=[text], images=[[image]])["input_ids"][0])
        shown = rank.processor.tokenizer.decode(found.completion_token_ids)
        assert shown == sample.target + rank.family.end_of_turn


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_are_known_before_the_start(family: str, world: Path, tmp_path: Path) -> None:
    """Also that of a photograph taken upright and stored lying."""
    lying = Image.new("RGB", (168, 28))
    exif = lying.getexif()
    exif[ExifTags.Base.Orientation] = 6
    lying.save(tmp_path / "lying.jpg", exif=exif)
    rank = supervised_rank(world, family)
    samples = [*demonstrations(world, 4), replace(demonstrations(world, 1)[0], image=str(tmp_path / "lying.jpg"))]
    for sample, tokens in zip(samples, Supervision(rank).tokenize(samples), strict=True):
        length = len(tokens.prompt_token_ids) + len(tokens.completion_token_ids)
        shown = [Demonstration(id="q1", sample=sample)]
        settings = {"max_pixels": rank.spec.max_pixels, "terse": True}
        found = check_demonstrations(shown, rank.processor, rank.family, **settings, tokens_per_micro_batch=length)
        assert found == length
        with pytest.raises(DataError, match=rf"q1: {length} tokens; set it to {length} or more"):
            check_demonstrations(shown, rank.processor, rank.family, **settings, tokens_per_micro_batch=length - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_without_room_for_a_completion_are_named(family: str, world: Path) -> None:
    rank = supervised_rank(world, family)
    shared = {"answer": "left", "rationale": None, "dataset": "d", "split": "train", "license": "MIT"}
    asked = {"short": "Where?", "long": "Where is the finding, and how large is it?"}
    examples = [Example(id=key, image=str(world / "0.png"), question=text, **shared) for key, text in asked.items()]
    messages = chat_messages(asked["long"], rank.family, terse=True)
    text = rank.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    length = len(
        rank.processor(text=[text], images=[[read_image(examples[1].image, max_pixels=10_000)]])["input_ids"][0]
    )

    def check(max_model_len: int, tokens_per_micro_batch: int) -> int:
        settings = [
            f"rollout.max_model_len={max_model_len}",
            f"learner.tokens_per_micro_batch={tokens_per_micro_batch}",
        ]
        config = compose_config(["rollout.max_new_tokens=10", "model.max_pixels=10000", *settings])
        return check_prompts(examples, rank.processor, rank.family, config)

    assert check(length + 10, length + 10) == length
    for limits, name in (((length + 9, 4096), "rollout.max_model_len"), ((4096, length + 9), "tokens_per_micro_batch")):
        with pytest.raises(DataError, match=rf"{name}={length + 9}: long: {length} tokens; raise it to {length + 10}"):
            check(*limits)


def test_the_loss_is_the_mean_of_the_target_tokens_whatever_the_micro_batches(world: Path) -> None:
    samples = demonstrations(world)
    rank = supervised_rank(world)
    supervision = Supervision(rank)
    total, num_tokens = supervision.loss(samples)
    scored = score(rank, supervision.tokenize(samples))
    assert total == pytest.approx(-sum(sum(row) for row in scored.values()), rel=1e-6)
    assert num_tokens == sum(len(row) for row in scored.values())
    one = steps(rank, samples, 3)
    many = steps(supervised_rank(world, tokens_per_micro_batch=120), samples, 3)
    assert one[0].loss == pytest.approx(total / num_tokens, rel=1e-6)
    assert one[0].num_micro_batches == 1 < many[0].num_micro_batches
    for mine, other in zip(one, many, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
        assert mine.lr == other.lr
    assert [stats.lr for stats in one] == pytest.approx([2.5e-3, 5e-3, 5e-3 * 18 / 19])


def test_adapters_learn_and_nothing_else_moves(world: Path) -> None:
    rank = supervised_rank(world, lora=replace(LORA, dropout=0.0))
    assert rank.reference is None
    before = {name: parameter.clone() for name, parameter in rank.model.named_parameters()}
    losses = [stats.loss for stats in steps(rank, demonstrations(world), 12)]
    assert losses[-1] < 0.97 * losses[0]
    moved = {name for name, parameter in rank.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all("lora_" in name for name in moved)


def test_training_under_dropout_goes_on_to_the_bit(world: Path, tmp_path: Path) -> None:
    samples = demonstrations(world)
    whole = [stats.loss for stats in steps(supervised_rank(world, lora=LORA), samples, 6)]
    first = supervised_rank(world, lora=LORA)
    begun = [stats.loss for stats in steps(first, samples, 3)]
    torch.rand(7)  # what else a process draws must not matter
    save(first, tmp_path)
    second = supervised_rank(world, lora=LORA)
    load(second, tmp_path)
    assert begun + [stats.loss for stats in steps(second, samples, 3)] == whole
    plain = [stats.loss for stats in steps(supervised_rank(world, lora=replace(LORA, dropout=0.0)), samples, 3)]
    assert plain[1:] != begun[1:], "dropout does something"
    held_out = Supervision(second)
    assert held_out.loss(samples) == held_out.loss(samples), "a held-out loss sees no dropout"


@pytest.mark.usefixtures("ray_session")
def test_ranks_change_nothing(world: Path) -> None:
    """Two ranks under ZeRO-3 give one rank's losses, and fall together over an image that one of them cannot read."""
    lora = replace(LORA, dropout=0.0)
    alone = supervised_rank(world, lora=lora, tokens_per_micro_batch=120)
    samples = demonstrations(world)
    held_out = Supervision(alone).loss(samples)
    expected = steps(alone, samples, 3)

    async def on_two_ranks() -> None:
        settings = spec(
            world, loss=LossConfig(beta=0.0), lora=lora, num_ranks=2, zero_stage=3, tokens_per_micro_batch=120
        )
        learner = DeepSpeedLearner(settings)
        await learner.start()
        try:
            assert await learner.sft_loss(samples) == (pytest.approx(held_out[0], rel=1e-5), held_out[1])
            for one in expected:
                both = await learner.sft_step(samples, num_steps=20, lr=5e-3, warmup_share=0.1)
                assert both.loss == pytest.approx(one.loss, rel=1e-4)
                assert (both.lr, both.num_tokens) == (one.lr, one.num_tokens)
            torn = world / "torn.png"
            torn.write_bytes((world / "0.png").read_bytes()[:200])
            with pytest.raises(DataError, match=r"cannot read image .*torn\.png"):
                await learner.sft_loss([*samples[:3], replace(samples[3], image=str(torn))])
            assert (await learner.sft_loss(samples[:1]))[1] > 0, "the group works on, with fewer samples than ranks"
        finally:
            await learner.close()

    asyncio.run(on_two_ranks())


# The command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy checkpoint and a small prepared set, as a user would bring them."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    train = phantom_examples("train", 25, seed=3, noise=0.0, images=root / "images")
    test = phantom_examples("test", 6, seed=3, noise=0.0, images=root / "images")
    train[4] = replace(train[4], rationale=None)
    write_jsonl(train, root / "train.jsonl", root=root)
    write_jsonl(test, root / "test.jsonl", root=root)
    corpus = tokenizer_corpus([item for item in train if item.rationale], "think")
    build_toy_model("qwen2_5_vl", root / "model", corpus=corpus, seed=1)
    return root


def command(data: Path, runs: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mrpo.sft", "data=jsonl", f"data.root={data}", f"model.path={data / 'model'}"),
        *(f"runs_dir={runs}", f"cache_dir={data / 'cache'}", "cluster.min_free_memory_gib=1"),
        *("sft.num_epochs=3", "sft.batch_size=8", "sft.lr=1e-2", "sft.lora.r=4", "sft.lora.dropout=0.1"),
        *("rollout.max_new_tokens=16", "rollout.max_model_len=256", "judge=lexical", *overrides),
    ]


def sft(data: Path, runs: Path, *overrides: str) -> tuple[Path, str]:
    done = subprocess.run(
        command(data, runs, *overrides), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = runs.glob("*/*/")
    return folder, done.stderr


def losses(folder: Path) -> list[tuple[float | None, ...]]:
    names = ("step", "sft/loss", "policy/grad_norm", "policy/lr", "policy/tokens")
    return [tuple(row[name] for name in names) for row in read_metrics(folder).rows]


@pytest.fixture(scope="module")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return sft(data, tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_what_training_and_evaluation_take(whole_run: tuple[Path, str], data: Path) -> None:
    folder, shown = whole_run
    assert folder.parent.name == "phantom_sft"
    assert "1 of 25 training questions have no rationale and are left out" in shown
    assert "24 demonstrations, 3 epochs of 3 steps" in shown
    assert f'make train ARGS="model.path={folder}/checkpoints/step_{NUM_STEPS}/hf"' in shown
    state, rows = read_state(folder), read_metrics(folder).rows
    assert state.status == RunStatus.FINISHED
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    first, last = rows[0]["sft/loss"], rows[-1]["sft/loss"]
    assert first is not None and last is not None and last < 0.9 * first
    held_out = read_heldout(folder)
    assert [(item.step, item.epoch, item.num_examples) for item in held_out] == [
        (0, 0, 6), (3, 1, 6), (6, 2, 6), (9, 3, 6),
    ]  # fmt: skip
    assert held_out[-1].loss < 0.9 * held_out[0].loss
    assert read_config(folder)["num_steps"] == NUM_STEPS
    assert len(read_rows(folder / "eval" / "after.parquet")) == 6
    assert not (folder / "eval" / "before.parquet").exists()
    assert "held out" in (folder / "report.html").read_text()

    checkpoint = list_checkpoints(folder)[-1].path
    assert (checkpoint / "adapter" / "adapter_config.json").is_file()
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint / "hf")
    base = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(data / "model")
    old, moved = base.state_dict(), set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, old[name]):
            moved.add(name)
    assert moved and all("language_model" in name and "_proj" in name for name in moved)


def test_the_timeline_holds_every_stage(whole_run: tuple[Path, str]) -> None:
    folder, _ = whole_run
    spans = [span["name"] for span in json.loads((folder / TIMELINE).read_text()) if span.get("cat") == span["name"]]
    assert (spans.count("learn"), spans.count("evaluate")) == (NUM_STEPS, 4)
    assert spans.count("checkpoint") >= 1


def run_in_a_cluster(data: Path, runs: Path) -> None:
    """A run of three steps in a Ray that outlives it, and what that shows until it has shown all; in `scraped.json`."""
    with nodes() as cluster, Endpoint(cluster.metrics_port) as endpoint:
        folder, _ = sft(data, runs, f"cluster.address={cluster.address}", "sft.num_epochs=1", "eval.after=false")
        own = labels_of(folder)
        wait_for(lambda: 3.0 in endpoint.series().get(("ray_mrpo_run_step", own), []), "the last step")
    (runs / "scraped.json").write_text(json.dumps(endpoint.texts))


def labels_of(folder: Path) -> frozenset[tuple[str, str]]:
    return frozenset({("experiment", "phantom_sft"), ("run", folder.name)})


def test_a_cluster_shows_the_numbers_on_record_and_every_stage(data: Path, tmp_path: Path) -> None:
    """A run of seconds may end between two looks at a Ray of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_sft", str(data), str(tmp_path)],  # here may be another Ray
        cwd=REPOSITORY,
        env={**os.environ, "RAY_metrics_report_interval_ms": "250"},  # of Ray's processes; 10,000 by default
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("*/*/")
    own, endpoint = labels_of(folder), Endpoint(port=0, texts=json.loads((tmp_path / "scraped.json").read_text()))
    series, rows = endpoint.series(), read_metrics(folder).rows
    for name, exported in (("sft/loss", "ray_mrpo_sft_loss_nats"), ("policy/lr", "ray_mrpo_policy_lr")):
        shown = set(series[exported, own])
        assert shown and shown <= {row[name] for row in rows}, name
    assert set(series["ray_mrpo_heldout_loss_nats", own]) <= {item.loss for item in read_heldout(folder)}
    assert set(series["ray_mrpo_run_planned_steps", own]) == {3}
    num_tokens = math.fsum(row["policy/tokens"] or 0.0 for row in rows)
    assert series["ray_mrpo_policy_tokens_total", own][-1] == num_tokens
    staged = {dict(labels).get("stage") for name, labels in series if name == "ray_mrpo_time_stage_seconds"}
    assert staged >= {"learn", "evaluate"}
    assert_every_panel_asks_for_what_was_exported(endpoint, [Stage.SUPERVISED])


def test_the_export_gives_the_loss_on_record(whole_run: tuple[Path, str], data: Path) -> None:
    """Merged adapters under plain full loading: the held-out loss of the last epoch."""
    folder, _ = whole_run
    hf = list_checkpoints(folder)[-1].path / "hf"
    settings = replace(spec(data, "model", loss=LossConfig(beta=0.0)), model_folder=str(hf))
    rank = make(settings)
    from mrpo.data.checks import RowChecks
    from mrpo.data.jsonl import read_jsonl

    test = read_jsonl(data / "test.jsonl", root=data, checks=RowChecks(max_bad_rows=0))
    samples = demonstrations_of(test, family_of("qwen2_5_vl"), DataKind.JSONL).samples
    total, num_tokens = Supervision(rank).loss(samples)
    assert total / num_tokens == pytest.approx(read_heldout(folder)[-1].loss, rel=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_losses(whole_run: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(data, tmp_path, "eval.after=false", "checkpoint.every_steps=2"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_steps(process, tmp_path, 2)
    shown = interrupt(process)
    assert "make sft ARGS=" in shown
    (folder,) = tmp_path.glob("*/*/")
    assert read_state(folder).status == RunStatus.INTERRUPTED
    assert list_checkpoints(folder)[-1].step == read_state(folder).step >= 2

    resumed = subprocess.run(
        [sys.executable, "-m", "mrpo.sft", f"runs_dir={tmp_path}", "resume=auto"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stderr
    assert read_state(folder).status == RunStatus.FINISHED
    whole, _ = whole_run
    assert losses(folder) == losses(whole)
    assert read_heldout(folder) == read_heldout(whole)
    assert json.loads((folder / "heldout.json").read_text())


if __name__ == "__main__":
    run_in_a_cluster(*map(Path, sys.argv[1:]))
