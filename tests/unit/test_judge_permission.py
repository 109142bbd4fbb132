"""Data that must not leave the house is not sent to a judge elsewhere: the rule, and that both commands ask it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import mrpo.eval.__main__ as eval_command
import mrpo.train as train_command
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.data.sets import SETS
from mrpo.errors import ConfigError
from mrpo.host import is_this_machine
from mrpo.judge_permission import require_judge_allowed
from mrpo.types import Example

OUTSIDE = JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url="https://api.example.com/v1", model="m")
FLAGS = ["judge=openai_compatible", f"judge.url={OUTSIDE.url}", "judge.model=m"]


def example(dataset: str, license_text: str = "CC0-1.0", image: str = "scan.png") -> Example:
    return Example(
        id=f"{dataset}-1",
        image=image,
        question="Which side?",
        answer="right",
        rationale="It is right.",
        dataset=dataset,
        split="train",
        license=license_text,
    )


@pytest.mark.parametrize(
    "data",
    [
        example("quilt_vqa", SETS["quilt_vqa"].license),
        example("mimic_cxr_vqa", "?"),
        example("MIMIC-CXR-VQA"),
        example("Quilt-VQA"),
        example("ward 3", "PhysioNet Credentialed Health Data License 1.5.0"),
        example("published", "CC-BY-4.0; no external judge"),
    ],
)
def test_what_must_not_be_sent_out(data: Example) -> None:
    with pytest.raises(ConfigError, match=r"may not be sent to an external judge .* judge\.on_premises=true"):
        require_judge_allowed([example("vqa_rad"), data], OUTSIDE)
    require_judge_allowed([data], replace(OUTSIDE, on_premises=True))
    require_judge_allowed([data], replace(OUTSIDE, url="http://127.0.0.1:8000/v1"))
    require_judge_allowed([data], JudgeConfig(kind=JudgeKind.LEXICAL))
    require_judge_allowed([data], JudgeConfig(kind=JudgeKind.VLLM))  # served for the run, on its machines


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost.example.com/v1", False),
        ("https://127.0.0.1@example.com/v1", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_which_urls_stay_on_this_machine(url: str, here: bool) -> None:
    assert is_this_machine(url) is here


def test_a_malformed_url_is_no_traceback_and_no_permission() -> None:
    with pytest.raises(ConfigError, match="may not be sent to an external judge"):
        require_judge_allowed([example("quilt_vqa")], replace(OUTSIDE, url="http://[::1"))


def test_what_may() -> None:
    require_judge_allowed([example("vqa_rad"), example("our own"), example("published", "CC-BY-4.0")], OUTSIDE)


def jsonl(folder: Path, name: str, data: Example) -> None:
    Image.new("L", (8, 8)).save(folder / "scan.png")
    rows = [{**{key: getattr(data, key) for key in Example.__slots__}, "id": f"{name}-{number}"} for number in range(8)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_training_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train_command, "check_judge_endpoint", lambda config: None)
    for name in ("train.jsonl", "test.jsonl"):
        jsonl(tmp_path, name, example("mimic_cxr_vqa"))
    places = [f"data.root={tmp_path}", f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]
    assert train_command.main(["data=jsonl", *places, *FLAGS]) == 2
    assert "may not be sent to an external judge" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs" / "phantom").exists()


def test_evaluation_asks(tmp_path: Path) -> None:
    folder = tmp_path / "vqa_rad"
    folder.mkdir()
    jsonl(folder, "test.jsonl", example("mimic_cxr_vqa"))  # whatever the folder is called
    (folder / "manifest.json").write_text(json.dumps({"open_rule": "all", "set": "vqa_rad"}))
    outputs = tmp_path / "outputs.json"
    outputs.write_text("[]")
    arguments = [f"benchmark.root={tmp_path}", f"benchmark.generations={outputs}", "benchmark.sets=[vqa_rad]"]
    with pytest.raises(ConfigError, match="MIMIC-Ext-MIMIC-CXR-VQA may not be sent to an external judge"):
        eval_command.prepare_job([*arguments, *FLAGS])
