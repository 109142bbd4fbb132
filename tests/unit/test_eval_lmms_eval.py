"""The lmms-eval layout, read back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrpo.errors import DataError
from mrpo.eval.lmms_eval import write_lmms_eval
from tests.unit.evaluation_world import make_evaluation, make_row, unrated

ROWS = [make_row(n, correct=n % 3 == 0, valid=[True, n % 2 == 0]) for n in range(7)]
ROWS += [unrated(make_row(7, correct=True)), make_row(8, correct=True, dataset="slake", answer=None)]


def test_round_trip(tmp_path: Path) -> None:
    paths = write_lmms_eval(tmp_path, make_evaluation(ROWS, "org/model: 8B"))
    folder = tmp_path / "org__model__ 8B"
    # 1,760,000,002 s after the epoch, in UTC
    assert [path.name for path in paths] == [
        "20251009_085322_results.json",
        "20251009_085322_samples_vqa_rad.jsonl",
        "20251009_085322_samples_slake.jsonl",
    ]
    assert {path.parent for path in paths} == {folder}
    tree = json.loads(paths[0].read_text(encoding="utf-8"))
    rad = tree["results"]["vqa_rad"]
    right = np.array([row.correct for row in ROWS[:8]], dtype=float)
    assert rad["alias"] == "VQA-RAD"
    assert rad["accuracy,none"] == pytest.approx(right.mean())
    assert rad["accuracy_stderr,none"] == pytest.approx(right.std(ddof=1) / np.sqrt(8))
    assert rad["step_validity,none"] == pytest.approx((4 * 1 + 3 * 0.5) / 7)
    assert rad["judge_errors,none"] == 1
    slake = tree["results"]["slake"]
    assert slake["accuracy_stderr,none"] == "N/A" and "step_validity,none" not in slake
    assert tree["groups"]["mrpo"]["accuracy,none"] == pytest.approx(4 / 9)
    assert tree["group_subtasks"] == {"mrpo": ["vqa_rad", "slake"]}
    assert set(tree["configs"]) == set(tree["versions"]) == set(tree["n-shot"]) == set(tree["n-samples"])
    assert tree["n-samples"]["vqa_rad"] == {"original": 8, "effective": 8}
    assert tree["config"]["random_seed"] == 0 and tree["model_name_sanitized"] == "org__model__ 8B"
    samples = [json.loads(line) for line in paths[1].read_text(encoding="utf-8").splitlines()]
    assert [sample["doc_id"] for sample in samples] == list(range(8))
    assert [sample["accuracy"] for sample in samples] == right.tolist()
    assert samples[0]["target"] == "upper left, 2" and samples[0]["filtered_resps"] == ["upper left, 2"]
    assert samples[0]["resps"] == [[ROWS[0].text]] and samples[0]["input"] == ROWS[0].question
    assert samples[7]["judge_error"] == "timeout"
    hashes = "".join(f"sample_{number}{sample['doc_hash']}" for number, sample in enumerate(samples))
    assert tree["task_hashes"]["vqa_rad"] == hashlib.sha256(hashes.encode()).hexdigest()
    [last] = [json.loads(line) for line in paths[2].read_text(encoding="utf-8").splitlines()]
    assert last["filtered_resps"] == [""]


def test_writing_again_replaces_the_files(tmp_path: Path) -> None:
    evaluation = make_evaluation(ROWS)
    first = {path: path.read_bytes() for path in write_lmms_eval(tmp_path, evaluation)}
    assert {path: path.read_bytes() for path in write_lmms_eval(tmp_path, evaluation)} == first
    assert sorted((tmp_path / "ours").iterdir()) == sorted(first)


@pytest.mark.parametrize("model", ["../../etc", "..", "a/../b"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, model: str) -> None:
    root = tmp_path / "out"
    for path in write_lmms_eval(root, make_evaluation(ROWS, model)):
        assert path.resolve().parent.parent == root.resolve()


def test_no_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no question"):
        write_lmms_eval(tmp_path, replace(make_evaluation(ROWS), rows=[]))
