"""API keys: where they are read, that they reach the endpoint, and that they are found nowhere else."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from judge_server import Answer, Received, ScriptedServer, all_ones, judge_request, marks, reply

from judge.api_key import key_source, read_key
from judge.check import check_judge
from judge.client import JudgeClient
from mrpo.choices import JudgeKind
from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import ConfigError
from mrpo.judge_spending import SPENDING_FILE
from mrpo.types import Judgement

KEY = "sk-planted-0123/45678\\9-do-not-leak"  # with characters that JSON may escape
OTHER = "sk-other-9876543210-do-not-leak"
GOOD = marks((1, 0), (0, 1))


def key_file(folder: Path, key: str = KEY, mode: int = 0o600) -> str:
    path = folder / f"{key[:8]}.key"
    path.write_text(f"{key}\n")
    path.chmod(mode)
    return str(path)


def judge_once(config: JudgeConfig, image: str) -> Judgement:
    async def scenario() -> Judgement:
        client = JudgeClient(config, concurrency=1)
        try:
            return await client.judge(judge_request(image), max_attempts=2)
        finally:
            await client.close()

    return asyncio.run(scenario())


def test_each_endpoint_gets_its_own_key(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", OTHER)
    with ScriptedServer(lambda *_: reply(GOOD)) as one, ScriptedServer(lambda *_: reply(GOOD)) as two:
        endpoints = (
            EndpointConfig(url=one.url, model="m"),
            EndpointConfig(url=two.url, model="m", api_key_env="OTHER_KEY"),
        )
        config = JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, endpoints=endpoints, api_key_file=key_file(tmp_path))
        for _ in range(20):
            judge_once(config, image)
    assert {request.headers["authorization"] for request in one.requests} == {f"Bearer {KEY}"}
    assert {request.headers["authorization"] for request in two.requests} == {f"Bearer {OTHER}"}


@pytest.mark.parametrize(
    ("judge", "endpoint", "source"),
    [
        ({}, {}, "MRPO_JUDGE_API_KEY"),
        ({"api_key_env": "A"}, {}, "A"),
        ({"api_key_env": "A", "api_key_file": "/a"}, {}, "/a"),
        ({"api_key_env": "A", "api_key_file": "/a"}, {"api_key_env": "B"}, "B"),
        ({"api_key_env": "A"}, {"api_key_env": "B", "api_key_file": "/b"}, "/b"),
    ],
)
def test_the_nearest_source_is_asked(judge: dict[str, str], endpoint: dict[str, str], source: str) -> None:
    found = key_source(JudgeConfig(**judge), EndpointConfig(url="http://h/v1", model="m", **endpoint))  # type: ignore[arg-type]
    assert str(found) == source


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600])
def test_a_key_file_open_to_others_is_warned_of(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    config = JudgeConfig(api_key_file=key_file(tmp_path, mode=mode))
    with caplog.at_level(logging.WARNING):
        assert read_key(key_source(config, EndpointConfig(url="http://h/v1", model="m"))) == KEY
    assert ("chmod 600" in caplog.text) == (mode != 0o600)
    assert KEY not in caplog.text


@pytest.mark.parametrize("text", [None, "", " \n", "sk one", "sk-\u00f6"])
def test_a_file_without_a_key_is_refused_before_anything_is_sent(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    config = JudgeConfig(
        kind=JudgeKind.OPENAI_COMPATIBLE, url="http://127.0.0.1:1/v1", model="m", api_key_file=str(path)
    )
    with pytest.raises(ConfigError, match=str(path)) as caught:
        check_judge(config)
    assert "sk" not in str(caught.value).replace(str(path), "")


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500, 302])
@pytest.mark.parametrize("padding", [0, 130, 150, 170, 190])
def test_a_server_that_quotes_the_key_does_not_get_it_into_a_failure(
    image: str, tmp_path: Path, status: int, padding: int
) -> None:
    """Also where a quotation would end within the key."""

    def script(_: int, received: Received) -> Answer:
        text = "x" * padding + received.headers["authorization"]
        answer = reply(text) if status == 200 else Answer(status=status, body=text.encode())
        return Answer(status=status, body=answer.body, headers={"x-echo": received.headers["authorization"]})

    with ScriptedServer(script) as server:
        config = JudgeConfig(
            kind=JudgeKind.OPENAI_COMPATIBLE, url=server.url, model="m", api_key_file=key_file(tmp_path), backoff_s=0.01
        )
        judgement = judge_once(config, image)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY[:12] not in repr(judgement)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder whose name is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def faulty(number: int, received: Received) -> Answer:
    """Every third reply is good; the others quote what was received, in every way a reply can."""
    if received.method == "GET":
        return Answer()
    quoted = f"you sent {dict(received.headers)}"
    faults = [
        Answer(status=500, body=quoted.encode()),
        Answer(status=400, body=quoted.encode()),
        reply(quoted),
        Answer(status=429, body=quoted.encode(), headers={"x-echo": received.headers["authorization"]}),
        Answer(
            status=302,
            body=quoted.encode(),
            headers={"Location": f"http://elsewhere.example/{received.headers['authorization']}"},
        ),
        Answer(drop=True),
    ]
    return all_ones(received) if number % 3 == 0 else faults[number % len(faults)]


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything in the files of a folder, tables and compressed rulings unpacked."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes().decode("latin-1")
            yield path, text
            if path.suffix == ".parquet":
                yield path, str(pq.read_table(path).to_pylist())  # type: ignore[no-untyped-call]


def train(folder: Path, ray_folder: Path, server: ScriptedServer, file: str, *overrides: str) -> tuple[int, str]:
    """A training whose judge fails in every way; returns the exit code and what was shown."""
    endpoints = f"[{{url:'{server.url}',model:m}},{{url:'{server.url}/',model:n,api_key_file:'{file}'}}]"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mrpo.train", "judge=openai_compatible", f"judge.endpoints={endpoints}"),
            *(
                "num_steps=2",
                "eval.before=false",
                "eval.after=false",
                "judge.max_failure_share=1.0",
                "judge.backoff_s=0.05",
            ),
            *("judge.breaker.num_failures=1000", "judge.max_attempts=2", "reward.answer.kind=judge"),
            *(f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}"),
            *("model.warm_start.num_scans=64", "model.warm_start.true_steps=80", "model.warm_start.faulty_steps=2"),
            *("data.num_train=16", "data.num_test=8", "rollout.prompts_per_step=4", "rollout.group_size=4"),
            *("cluster.min_free_memory_gib=1", *overrides),
        ],
        env={**os.environ, "MRPO_JUDGE_API_KEY": KEY, "RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_no_output_of_a_run_holds_a_key(tmp_path: Path, ray_folder: Path) -> None:
    """Two trainings, one that a judge's failure ends; everything that was written or shown is searched."""
    file, outputs = key_file(tmp_path, OTHER), tmp_path / "out"
    with ScriptedServer(faulty) as server:
        code, shown = train(outputs, ray_folder, server, file)
        assert code == 0, shown[-3000:]
        num_good = len(server.requests)
        failed, shown_at_end = train(outputs, ray_folder, server, file, "judge.on_failure=fail")
    assert num_good > 15, [request.path for request in server.requests]
    assert failed != 0
    assert "judge.on_failure=fail" in shown_at_end
    sent = {request.headers["authorization"] for request in server.requests if request.method == "POST"}
    assert sent == {f"Bearer {KEY}", f"Bearer {OTHER}"}
    names: set[str] = set()
    is_quoted = False
    for path, text in [*texts(outputs), *texts(ray_folder), (Path("console"), shown + shown_at_end)]:
        for key in (KEY, OTHER, KEY[:16], OTHER[:16]):
            assert key not in text, path
        names.add(path.name)
        is_quoted |= "you sent" in text and path.suffix == ".parquet"
    # What there is to search: nothing of it was left out.
    assert {"config.yaml", "metrics.jsonl", "events.log", "report.html", SPENDING_FILE} <= names
    assert any(path.is_file() for path in (outputs / "cache" / "judge").rglob("*")), "no ruling was kept"
    assert any(name.startswith(("worker-", "raylet")) for name in names), "no log of Ray was searched"
    assert is_quoted, "no failure's detail is in the rollouts"
