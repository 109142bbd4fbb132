"""Canaries in `make eval`: what they came to is said, since they are paid for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.data.jsonl import write_jsonl
from tests.integration.judge_server import Answer, Received, ScriptedServer, all_ones
from tests.unit.test_eval_command import RIGHT, prepared

PATIENCE_S = 300.0


def script(_: int, received: Received) -> Answer:
    return all_ones(received) if received.method == "POST" else Answer(body=b'{"data": [{"id": "judge-model"}]}')


@pytest.mark.timeout(2 * PATIENCE_S)
def test_an_evaluation_tells_how_many_canaries_were_ruled_wrong(tmp_path: Path) -> None:
    """A judge that marks everything right: of each canary the other side, the repetition and the talk are wrong."""
    folder = tmp_path / "sets" / "vqa_rad"
    examples = [replace(item, rationale="It is the right kidney.") for item in prepared(tmp_path / "sets", num=3)]
    write_jsonl(examples, folder / "test.jsonl", root=folder)
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps([{"id": item.id, "text": RIGHT} for item in examples]))
    with ScriptedServer(script) as server:
        arguments = [
            *(sys.executable, "-m", "mrpo.eval", f"benchmark.generations={outputs}", "benchmark.sets=[vqa_rad]"),
            *(f"benchmark.root={tmp_path / 'sets'}", f"benchmark.out={tmp_path / 'out'}", "judge=openai_compatible"),
            *(f"judge.url={server.url}", "judge.model=judge-model", "judge.send_image=false", "judge.canary_share=1"),
            *("judge.on_premises=true", "judge.cache.enabled=false"),
        ]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert sum(request.method == "POST" for request in server.requests) == 3 * 3  # steps, answer, canary
    told = "9 of 12 (75.0%)"
    assert f"canary steps ruled wrong by the judge: {told}" in " ".join(done.stderr.split())
    assert told in (tmp_path / "out" / "benchmark.html").read_text(encoding="utf-8")
