"""An evaluation killed in the middle of a chunk: rulings that had come are on disk and are not asked for again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil

from mrpo.eval.store import RESULTS_FILE
from mrpo.rows import read_rows
from tests.integration.judge_server import CORRECT, Answer, Received, ScriptedServer, reply
from tests.unit.test_eval_command import RIGHT, prepared

PATIENCE_S = 300.0
NUM = 60
CONCURRENCY = 4


def test_a_kill_in_the_middle_of_a_chunk_costs_no_ruling(tmp_path: Path) -> None:
    examples = prepared(tmp_path / "sets", num=NUM)
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps([{"id": item.id, "text": RIGHT} for item in examples]))
    enough, killed = threading.Event(), threading.Event()

    def script(number: int, _: Received) -> Answer:
        if number >= 30:
            enough.set()
            killed.wait(PATIENCE_S)  # or the chunk might be done before the kill comes
        return reply(CORRECT, delay_s=0.05)

    with ScriptedServer(script) as server:
        arguments = [
            *(sys.executable, "-m", "mrpo.eval"),
            f"benchmark.generations={outputs}",
            "benchmark.sets=[vqa_rad]",
            f"benchmark.root={tmp_path / 'sets'}",
            f"benchmark.out={tmp_path / 'out'}",
            f"benchmark.chunk_size={NUM}",
            f"cache_dir={tmp_path / 'cache'}",
            "judge=openai_compatible",
            f"judge.url={server.url}",
            "judge.model=m",
            f"judge.concurrency={CONCURRENCY}",
        ]
        first = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert enough.wait(PATIENCE_S)
        others = psutil.Process(first.pid).children(recursive=True)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        _, alive = psutil.wait_procs(others, timeout=PATIENCE_S)  # judge actors ask on until they notice it
        assert not alive
        killed.set()
        assert not list((tmp_path / "out" / "parts").glob("*.parquet")), "the chunk was done before the kill"
        again = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        asked = Counter(item.body for item in server.requests if item.method == "POST")
    assert again.returncode == 0, again.stderr
    rows = read_rows(tmp_path / "out" / RESULTS_FILE)
    assert [row.prompt_id for row in rows] == [item.id for item in examples]
    assert all(row.correct for row in rows)
    assert len(asked) == NUM
    # What was on its way at the kill had no ruling yet.
    assert sum(count - 1 for count in asked.values()) <= 2 * CONCURRENCY
    assert sum(row.answer_judge_attempts == 0 for row in rows) >= 30 - 2 * CONCURRENCY
