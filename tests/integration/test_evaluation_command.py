"""`make eval` as a whole: real Ray and the lexical judge over HTTP; with a real engine in the slow test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrpo.eval.store import RESULTS_FILE
from mrpo.rows import read_rows
from tests.locations import vqa_rad_folder
from tests.unit.test_eval_command import RIGHT, WRONG, prepared

PATIENCE_S = 300.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mrpo.eval", *arguments, "judge=lexical"]


def kill_after_parts(arguments: list[str], out: Path, num_parts: int) -> None:
    """Start an evaluation and end it without warning once so many chunks are on disk."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    ends_at = time.monotonic() + PATIENCE_S
    while len(list(out.glob("parts/part_*.parquet"))) < num_parts:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < ends_at
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow  # test_evaluation_batch kills in the middle of a chunk, in every run of the tests
def test_killed_in_the_middle_no_question_is_lost_or_repeated(tmp_path: Path) -> None:
    examples = prepared(tmp_path / "sets", num=120)
    outputs = tmp_path / "outputs.json"
    outputs.write_text(
        json.dumps([{"id": item.id, "text": WRONG if number % 3 else RIGHT} for number, item in enumerate(examples)])
    )
    out = tmp_path / "out"
    arguments = command(
        f"benchmark.generations={outputs}",
        "benchmark.sets=[vqa_rad]",
        f"benchmark.root={tmp_path / 'sets'}",
        f"benchmark.out={out}",
        "benchmark.chunk_size=1",
    )
    kill_after_parts(arguments, out, 5)
    before = len(list(out.glob("parts/part_*.parquet")))
    assert before < len(examples)
    again = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert again.returncode == 0, again.stderr
    assert f"{before} of 120 questions" in again.stderr
    rows = read_rows(out / RESULTS_FILE)
    assert [row.prompt_id for row in rows] == [item.id for item in examples]
    assert len(list(out.glob("parts/part_*.parquet"))) == 120, "every question was asked once"
    assert [row.correct for row in rows] == [number % 3 == 0 for number in range(120)]
    assert all(row.answer_judge_attempts == 1 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(vqa_rad_folder() is None, reason="the real VQA-RAD is not there; set MRPO_VQA_RAD=<folder>")
def test_a_toy_model_answers_real_questions_and_survives_a_kill(tmp_path: Path) -> None:
    train = [sys.executable, "-m", "mrpo.train", "num_steps=1", "eval.before=false", "eval.after=false"]
    subprocess.run([*train, f"runs_dir={tmp_path / 'runs'}"], check=True, capture_output=True, timeout=PATIENCE_S)
    (run,) = (tmp_path / "runs" / "phantom").iterdir()
    prepare = [sys.executable, "-m", "mrpo.data", "prepare", "data.set=vqa_rad", f"data.source={vqa_rad_folder()}"]
    subprocess.run([*prepare, f"data.out={tmp_path / 'sets' / 'vqa_rad'}"], check=True, capture_output=True)
    out = tmp_path / "out"
    arguments = command(
        f"benchmark.model={run}",
        "benchmark.sets=[vqa_rad]",
        f"benchmark.root={tmp_path / 'sets'}",
        f"benchmark.out={out}",
        "benchmark.chunk_size=16",
    )
    kill_after_parts(arguments, out, 3)
    again = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert again.returncode == 0, again.stderr
    rows = read_rows(out / RESULTS_FILE)
    assert len(rows) == len({row.prompt_id for row in rows}) == 200
    assert all(row.text and row.answer_judge_failure is None for row in rows)
