"""A budget for the judge in `make eval`, against a real server: it stops, and goes on with a larger one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, Received, ScriptedServer, all_ones

from mrpo.eval.store import RESULTS_FILE
from mrpo.judge_spending import SPENDING_FILE, read_spending
from mrpo.rows import read_rows
from tests.unit.test_eval_command import RIGHT, prepared

PATIENCE_S = 300.0


def script(_: int, received: Received) -> Answer:
    if received.method == "GET":
        return Answer(body=b'{"data": [{"id": "judge-model"}]}')
    return all_ones(received)


def asked(server: ScriptedServer) -> int:
    return sum(request.method == "POST" for request in server.requests)


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
def test_an_evaluation_stops_at_its_budget_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    """Twelve answers, one call each of 740 tokens: 0.001 each at these prices, and room for five of them."""
    examples = prepared(tmp_path / "sets", num=12)
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps([{"id": item.id, "text": f"{RIGHT} {item.id}"} for item in examples]))

    def evaluate(server: ScriptedServer, out: str, *overrides: str) -> Any:
        arguments = [
            *(sys.executable, "-m", "mrpo.eval", f"benchmark.generations={outputs}", "benchmark.sets=[vqa_rad]"),
            *(f"benchmark.root={tmp_path / 'sets'}", f"benchmark.out={tmp_path / out}", "benchmark.chunk_size=4"),
            *("judge=openai_compatible", f"judge.url={server.url}", "judge.model=judge-model", "judge.concurrency=1"),
            *("judge.send_image=false", "judge.on_premises=true", f"cache_dir={tmp_path / 'cache'}", *overrides),
            "judge.prices={judge-model:{prompt:1,completion:7.5}}",
        ]
        return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    with ScriptedServer(script) as server:
        stopped = evaluate(server, "out", "judge.max_cost=0.0055")
        assert stopped.returncode == 2, stopped.stderr
        last = stopped.stderr.strip().splitlines()[-1]
        assert "judge.max_cost=0.0055: 0.005 spent" in last
        assert "the same command with judge.max_cost=<more> goes on from here" in last
        assert "judge budget: 0.005 of judge.max_cost=0.0055 is spent" in " ".join(stopped.stderr.split())
        assert asked(server) == 5
        assert not (tmp_path / "out" / RESULTS_FILE).exists()

        finished = evaluate(server, "out", "judge.max_cost=1")
        assert finished.returncode == 0, finished.stderr
        assert asked(server) == 12, "what was ruled on is not asked again"
        rows = read_rows(tmp_path / "out" / RESULTS_FILE)
        assert [row.prompt_id for row in rows] == [item.id for item in examples]
        assert all(row.correct and row.answer_judge_failure is None for row in rows)
        assert {row.answer_judge_model for row in rows} == {"judge-model"}
        assert read_spending(tmp_path / "out" / SPENDING_FILE)["judge-model"].requests == 12
        assert "cost 0.012" in finished.stderr

        known = evaluate(server, "elsewhere", "judge.max_requests=1")
        assert known.returncode == 0, known.stderr
        assert asked(server) == 12, "another evaluation finds the rulings on disk"
        assert not read_spending(tmp_path / "elsewhere" / SPENDING_FILE)
