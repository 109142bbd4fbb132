"""The published file layouts from end to end: supervised training, reinforcement, export, and what reads the export.

Each family's toy checkpoint goes through the commands users run, on all the real parts in float32. The parity gate
compares learner and engine after supervised training; the last step's rollouts compare them after five syncs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrpo.data.phantom import phantom_examples
from mrpo.families import FAMILIES
from mrpo.prompts import INSTRUCTION, chat_messages
from mrpo.rows import read_rows
from mrpo.run_reading import list_checkpoints, read_metrics
from mrpo.trace_row import TraceRow
from rollout.vocabulary import vocabulary_of
from tests.integration.published_engines import MAX_NEW_TOKENS, Ask, run_engines
from tests.locations import REPOSITORY
from tests.published_layout import write_published

NUM_STEPS = 6  # the last one's completions come from weights that were synced after five updates
BOUND = 1e-3  # nats, mean |Δ log-prob|
TIMEOUT_S = 600.0
COMMON = [
    "data.num_train=16",
    "data.num_test=6",
    "model.terse_prompt=false",
    "rollout.max_model_len=512",
    f"rollout.max_new_tokens={MAX_NEW_TOKENS}",
    "cluster.min_free_memory_gib=2",
]
SUPERVISED = [
    "sft.num_epochs=10",
    "sft.batch_size=8",
    "sft.lr=2e-3",
    "sft.lora.r=0",
    "eval.after=false",
]
REINFORCED = [
    f"num_steps={NUM_STEPS}",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "learner.lr=2e-4",
    "eval.before=false",
    "checkpoint.every_steps=0",
    f"parity.max_mean_diff={BOUND}",
    f"parity.probe_max_diff={BOUND}",
]


@dataclass(kw_only=True)
class Trained:
    """One family's checkpoint before, between and after."""

    family: str
    published: Path
    supervised: Path  # the supervised run's export
    run: Path
    export: Path
    after: list[TraceRow]  # greedy completions of the live engine after the last sync
    fresh: dict[str, Any]  # what a new engine on the export answered


def command(name: str, runs: Path, *overrides: str) -> Path:
    """Run a command to its end; returns the run folder."""
    done = subprocess.run(
        [sys.executable, "-m", f"mrpo.{name}", f"runs_dir={runs}", f"cache_dir={runs.parent / 'cache'}", *overrides],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    (folder,) = runs.glob("*/*/")
    return folder


def exported(run: Path) -> Path:
    """The folder that other programs load."""
    return list_checkpoints(run)[-1].path / "hf"


def corpus(folder: Path, think_tag: str) -> list[str]:
    """What the tokenizer must write: the question's frame and the rationales."""
    folder.mkdir()
    examples = phantom_examples("train", 16, seed=0, noise=0.0, images=folder)
    texts = [INSTRUCTION.format(think=think_tag), *(example.question for example in examples)]
    return [*texts, *texts, *(str(example.rationale) for example in examples)]


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    family = str(request.param)
    folder = tmp_path_factory.mktemp(family)
    published = folder / "published"
    write_published(family, published, corpus=corpus(folder / "corpus", FAMILIES[family].think_tag))
    supervised = exported(command("sft", folder / "sft", f"model.path={published}", *COMMON, *SUPERVISED))
    run = command("train", folder / "rl", f"model.path={supervised}", *COMMON, *REINFORCED)
    after = read_rows(run / "eval" / "after.parquet")
    ask = Ask(
        name="export",
        folder=str(exported(run)),
        model_type=family,
        greedy=[(row.question, row.image) for row in after],
    )
    return Trained(
        family=family,
        published=published,
        supervised=supervised,
        run=run,
        export=exported(run),
        after=after,
        fresh=run_engines([ask], folder, timeout_s=TIMEOUT_S)["export"],
    )


def test_learner_and_engine_agree_after_supervision_and_after_five_updates(trained: Trained) -> None:
    # The parity gate has compared the supervised weights with images, and would have ended the run above BOUND.
    rows = read_metrics(trained.run).rows
    assert len(rows) == NUM_STEPS
    for row in rows:
        assert row["policy/importance_diff"] is not None
        assert row["policy/importance_diff"] < BOUND
    assert rows[-1]["policy/grad_norm"]  # what was synced had changed


def test_a_new_engine_and_transformers_write_what_the_live_engine_wrote(trained: Trained) -> None:
    before = [row.text for row in trained.after]
    assert len(set(before)) > 1  # the image counts
    assert trained.fresh["texts"] == before
    assert trained.fresh["token_ids"] == greedy_of_transformers(trained)


def greedy_of_transformers(trained: Trained) -> list[list[int]]:
    """Token ids of greedy completions, with the tokens kept back that the sampler keeps back."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(trained.export, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(trained.export)
    family = FAMILIES[trained.family]
    vocabulary = vocabulary_of(processor.tokenizer, family, model.config.get_text_config().vocab_size)
    found: list[list[int]] = []
    for row in trained.after:
        messages = chat_messages(row.question, family)
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=[[Image.open(row.image).convert("RGB")]], return_tensors="pt")
        ids = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            suppress_tokens=vocabulary.banned,
            eos_token_id=vocabulary.end_of_turn,
        )
        found.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def test_the_export_holds_every_weight_under_the_published_name(trained: Trained) -> None:
    from mrpo.weight_files import read_tensors

    published, export = read_tensors(trained.published), read_tensors(trained.export)
    assert {name: tensor.shape for name, tensor in export.items()} == {
        name: tensor.shape for name, tensor in published.items()
    }
    assert {tensor.dtype for tensor in published.values()} == {"BF16"}
    generation = json.loads((trained.export / "generation_config.json").read_text())
    asked = json.loads((trained.published / "generation_config.json").read_text())
    assert generation["eos_token_id"] == asked["eos_token_id"]
    config = json.loads((trained.export / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
