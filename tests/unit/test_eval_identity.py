"""What makes another evaluation: every single thing that changes its numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrpo.config import Config
from mrpo.data.jsonl import write_jsonl
from mrpo.eval import identity as subject
from mrpo.eval.__main__ import prepare_job
from mrpo.eval.identity import evaluation_identity
from mrpo.types import Example
from tests.unit.checkpoint_folders import SHARDS, write_checkpoint


def prepared(root: Path) -> None:
    """A set with one question, a toy checkpoint and a file of outputs."""
    folder = root / "vqa_rad"
    (folder / "images").mkdir(parents=True)
    for name in "ab":
        Image.new("L", (8, 8)).save(folder / "images" / f"{name}.png")
    ask(root, "a.png", "Which side?")
    (folder / "manifest.json").write_text(json.dumps({"open_rule": "non_yes_no"}))
    (folder / "images.sha256").write_text("0  images/a.png\n")
    write_checkpoint(root / "toy")
    (root / "toy" / "adapter_model.bin").write_bytes(b"7")
    (root / "outputs.json").write_text('{"q": "right"}')


def ask(root: Path, image: str, question: str) -> None:
    folder = root / "vqa_rad"
    example = Example(
        id="q",
        image=str(folder / "images" / image),
        question=question,
        answer="right",
        rationale=None,
        dataset="vqa_rad",
        split="test",
        license="CC0-1.0",
    )
    write_jsonl([example], folder / "test.jsonl", root=folder)


def identity(root: Path, *overrides: str, source: str = "model=toy") -> dict[str, Any]:
    kind, _, place = source.partition("=")
    arguments = [f"benchmark.root={root}", f"benchmark.{kind}={root / place}", "benchmark.sets=[vqa_rad]"]
    job = prepare_job([*arguments, *overrides])
    return evaluation_identity(
        job.config,
        model_folder=job.model_folder,
        generations_sha256=job.generations.sha256 if job.generations else None,
        sets=job.sets,
    )


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (f"toy/{SHARDS[0]}", b"\x80?", b"\x80@"),
        ("toy/config.json", b'": "', b'" :"'),
        ("toy/tokenizer.json", b'"id": 0', b'"id": 5'),
        ("toy/preprocessor_config.json", b"{}", b"[]"),
        ("toy/adapter_model.bin", b"7", b"8"),
        ("vqa_rad/images.sha256", b"0 ", b"1 "),
    ],
)
def test_another_content_of_the_same_size_is_another_evaluation(
    tmp_path: Path, file: str, old: bytes, new: bytes
) -> None:
    prepared(tmp_path)
    before, times = identity(tmp_path), (tmp_path / file).stat()
    content = (tmp_path / file).read_bytes()
    assert old in content
    (tmp_path / file).write_bytes(content.replace(old, new))
    os.utime(tmp_path / file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (tmp_path / file).stat().st_size == times.st_size
    assert identity(tmp_path) != before


def test_other_outputs_are_another_evaluation(tmp_path: Path) -> None:
    prepared(tmp_path)
    before = identity(tmp_path, source="generations=outputs.json")
    (tmp_path / "outputs.json").write_text('{"q": "write"}')
    assert identity(tmp_path, source="generations=outputs.json") != before


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "model.terse_prompt=true", "model.max_pixels=9", "rollout.max_new_tokens=9"),
        *("rollout.max_model_len=999", "rollout.dtype=float32", "algorithm.step_strategy=fixed_tokens:9"),
        *("algorithm.threshold=0.5", "reward.answer.kind=exact", "reward.answer.bertscore.model=x"),
        *("reward.answer.bertscore.num_layers=3", "judge=lexical", "judge.lexical.min_step_overlap=0.5"),
        *("judge.lexical.min_answer_f1=0.5", "judge.send_image=false", "judge.temperature=1"),
        "judge.max_completion_tokens=9",
    ],
)
def test_another_setting_is_another_evaluation(tmp_path: Path, override: str) -> None:
    prepared(tmp_path)
    assert identity(tmp_path, override) != identity(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: ask(root, "b.png", "Which side?"),
        lambda root: ask(root, "a.png", "Which half?"),
        lambda root: (root / "vqa_rad" / "manifest.json").write_text('{"open_rule": "not_closed"}'),
    ],
    ids=["image", "question", "open rule"],
)
def test_another_question_is_another_evaluation(tmp_path: Path, change: Callable[[Path], object]) -> None:
    prepared(tmp_path)
    before = identity(tmp_path)
    change(tmp_path)
    assert identity(tmp_path) != before


def test_another_judge_or_rubric_is_another_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = ("judge.kind=openai_compatible", "judge.url=http://127.0.0.1:1/v1")
    prepared(tmp_path)
    before = identity(tmp_path, *outside, "judge.model=a")
    assert identity(tmp_path, *outside, "judge.model=b") != before
    monkeypatch.setattr("judge.answer_rubric.ANSWER_RUBRIC_VERSION", "next")
    assert identity(tmp_path, *outside, "judge.model=a") != before
    monkeypatch.undo()
    assert identity(tmp_path, *outside, "judge.model=a") == before
    monkeypatch.setattr("judge.rubric.RUBRIC_VERSION", "next")
    assert identity(tmp_path, *outside, "judge.model=a") != before


@pytest.mark.parametrize(
    "override", ["benchmark.name=x", "rollout.num_engines=2", "judge.concurrency=3", "benchmark.chunk_size=3"]
)
def test_what_changes_no_number_is_the_same_evaluation(tmp_path: Path, override: str) -> None:
    prepared(tmp_path)
    assert identity(tmp_path, override) == identity(tmp_path)


def test_a_large_file_is_known_by_size_time_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "WHOLE_BYTES", 8)
    monkeypatch.setattr(subject, "END_BYTES", 4)
    file = tmp_path / "model.safetensors"

    def of(content: bytes, time: int) -> dict[str, Any]:
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        return evaluation_identity(Config(), model_folder=tmp_path, generations_sha256=None, sets=[])

    first = of(b"head....tail", 1)
    assert first == of(b"head....tail", 1)
    assert len({str(item) for item in (first, of(b"hEad....tail", 1), of(b"head....taiL", 1))}) == 3
    assert of(b"head....tail", 2) != first and of(b"head.....tail", 1) != first
