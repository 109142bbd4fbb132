"""`make judge-check` as a whole: real Ray, the local judges over HTTP, a page at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from judge.local_server import LocalServer
from judge.rubric import RUBRIC, RUBRIC_VERSION
from mrpo.calibration.attacks import attacks
from mrpo.calibration.labels import Mark, read_labels
from mrpo.calibration.phantom_labels import PHANTOM_LABELS
from mrpo.config import JudgeConfig
from mrpo.phantom.toy_models import build_toy_model

PATIENCE_S = 300.0
REPEATS, ORDERS = 2, 1


def run(folder: Path, *arguments: str) -> str:
    """One command; its standard output."""
    command = [sys.executable, "-m", "mrpo.calibration", f"runs_dir={folder / 'runs'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def marks_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["mark"]: item for item in result["measures"]["marks"]}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An oracle that replies garbage now and then was checked; its folder, and the result before it is asked again."""
    folder = tmp_path_factory.mktemp("check")
    out = folder / "oracle"
    run(
        folder,
        f"check.out={out}",
        f"check.repeats={REPEATS}",
        f"check.orders={ORDERS}",
        "check.attacks=false",
        "judge.oracle.garbage_rate=0.2",
        "judge.prices={oracle: {prompt: 2, completion: 8}}",
    )
    return out, result_of(out)


def test_what_fails_is_counted_apart_and_what_is_ruled_is_exact(checked: tuple[Path, dict[str, Any]]) -> None:
    out, result = checked
    completions = read_labels(PHANTOM_LABELS)
    calls = result["calls"]
    assert (
        calls["num_calls"] == len(completions) * (REPEATS + ORDERS) == len((out / "rulings.jsonl").open().readlines())
    )
    assert calls["failures"].keys() == {"bad_json"}
    assert 0 < calls["failures"]["bad_json"] < calls["num_calls"] / 2
    assert 0 < result["measures"]["num_unjudged"] < len(completions)
    for mark in marks_of(result).values():
        assert mark["accuracy"]["value"] == mark["kappa"]["value"] == mark["kappa"]["low"] == 1.0
    tokens = calls["prompt_tokens"] * 2 + calls["completion_tokens"] * 8
    assert calls["cost"] == pytest.approx(tokens / 1e6)
    assert calls["latency_s"].keys() == {"p50", "p90", "p95", "p99", "max"}
    assert "bad_json" in (out / "report.html").read_text(encoding="utf-8")


def test_the_same_command_asks_again_for_failures_alone(checked: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, before = checked
    again = [f"check.out={out}", f"check.repeats={REPEATS}", f"check.orders={ORDERS}"]
    screen = run(tmp_path, *again)
    result = result_of(out)
    assert result["calls"]["failures"] == {}
    assert result["measures"]["num_unjudged"] == 0
    keys = Counter(json.loads(line)["key"] for line in (out / "rulings.jsonl").open(encoding="utf-8"))
    assert sum(keys.values()) - len(keys) == before["calls"]["failures"]["bad_json"], "each failed call once more"
    assert max(keys.values()) == 2
    marks = marks_of(result)
    assert [marks[mark]["kappa"]["value"] for mark in Mark] == [1.0] * 3
    assert marks["valid"]["num_steps"] == result["measures"]["labels"]["num_steps"] >= 400
    assert marks["valid"]["band"] == "almost perfect"
    assert (result["attacks"]["succeeded"], result["attacks"]["num_unjudged"]) == ([], 0), "exact by construction"
    assert result["attacks"]["num_attacks"] == len(attacks()) >= 60
    assert "100.0%" in screen
    assert f"report: {out / 'report.html'}" in screen


def test_the_lexical_judge_is_reported_as_it_is_and_compared(
    checked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    oracle, _ = checked
    out = tmp_path / "lexical"
    run(tmp_path, "judge=lexical", f"check.out={out}", "check.repeats=1", "check.orders=1", f"check.against={oracle}")
    result = result_of(out)
    marks = marks_of(result)
    assert 0.3 < marks["valid"]["kappa"]["value"] < 0.9
    assert marks["valid"]["kappa"]["low"] < marks["valid"]["kappa"]["value"] < marks["valid"]["kappa"]["high"]
    assert marks["valid"]["too_kind"] > 0.1, "a false sentence in the right words is right to it"
    assert 0 < len(result["attacks"]["succeeded"]) < len(attacks())
    won = sum(won for won, _ in result["attacks"]["by_kind"].values())
    assert won == len(result["attacks"]["succeeded"])
    assert result["attack_success"]["value"] == pytest.approx(won / len(attacks()))
    assert result["comparison"]["other_name"] == "oracle"
    valid = next(item for item in result["comparison"]["marks"] if item["mark"] == "valid")
    assert valid["accuracy_difference"]["high"] < 0
    assert valid["num_gained"] == 0
    assert valid["other_accuracy"] == 1.0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Compared with oracle" in page
    assert result["attacks"]["succeeded"][0].replace("_", " ") in page


def test_an_endpoint_sees_the_images_of_the_labels_every_time_anew(tmp_path: Path) -> None:
    Image.new("L", (84, 84), 90).save(tmp_path / "scan.png")
    rows = [json.loads(line) for line in PHANTOM_LABELS.open(encoding="utf-8").readlines()[:6]]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({**row, "image": "scan.png"}) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    with LocalServer(JudgeConfig()) as server:
        command = [
            "judge=openai_compatible",
            f"judge.url={server.url}",
            "judge.model=oracle",
            f"cache_dir={tmp_path / 'cache'}",
            f"check.labels={labels}",
            f"check.out={out}",
            "check.repeats=2",
            "check.orders=0",
        ]
        run(tmp_path, *command)
        stats = httpx.get(server.url.removesuffix("/v1") + "/stats", trust_env=False).json()
    result = result_of(out)
    assert result["settings"]["images sent"] == "yes"
    assert result["rubric"] == RUBRIC_VERSION
    unsent = result["attack_calls"]["num_calls"] - result["attack_calls"]["num_requests"]
    assert stats["requests"] == 6 * 2 + 2 * len(attacks()) - unsent, "no asking is spared by what is known already"
    assert not (tmp_path / "cache" / "judge").exists()
    assert marks_of(result)["valid"]["kappa"]["value"] == 1.0
    assert result["attacks"]["succeeded"] == [], "asked about without images"
    assert result["attacks"]["num_unjudged"] * 2 >= unsent > 0
    again = run(tmp_path, *command)  # the server is gone: what could never be sent is no reason to look for it
    assert "100.0%" in again
    assert result_of(out) == result


@pytest.mark.slow
def test_a_toy_model_is_reported_as_the_chance_it_is(tmp_path: Path) -> None:
    marks = {f"step{k}": {"Alignment": k % 2, "Contribution": 1} for k in range(1, 30)}
    corpus = [RUBRIC, json.dumps(marks, separators=(",", ":"))] * 3
    build_toy_model("qwen2_5_vl", tmp_path / "toy", corpus=corpus, seed=1, image_size=84)
    out = tmp_path / "out"
    run(
        tmp_path,
        "judge=vllm",
        f"judge.vllm.model={tmp_path / 'toy'}",
        "judge.vllm.max_model_len=4096",
        "judge.max_completion_tokens=1024",
        "judge.deadline_s=120",
        "judge.concurrency=16",
        f"check.out={out}",
        "check.repeats=1",
        "check.orders=0",
    )
    result = result_of(out)
    valid = marks_of(result)["valid"]
    assert result["calls"]["failures"] == {}, "structured outputs always parse"
    assert abs(valid["kappa"]["value"]) < 0.2
    assert result["attacks"]["num_unjudged"] < 6, "those that are longer than its context"
    assert result["attack_success"]["num"] == len(attacks()) - result["attacks"]["num_unjudged"]
    assert (out / "logs").is_dir()
