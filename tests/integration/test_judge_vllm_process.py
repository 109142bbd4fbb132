"""The process around a judge server: it comes up, tells why it does not, and ends with whoever started it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import psutil
import pytest
import ray

from judge.vllm_actors import VllmActor, VllmServers
from judge.vllm_server import VllmServer, VllmSpec, server_command, server_environment
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig, VllmJudgeConfig
from mrpo.errors import JudgeUnavailableError
from mrpo.faults import Fault, FaultKind, FaultLog, read_faults

HEALTHY = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers()
    def log_message(self, *_): pass
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
BROKEN = "import sys; print('ValueError: no such architecture'); sys.exit(3)"
MUTE = "import time; print('loading'); time.sleep(600)"


def server(folder: Path, script: str, **settings: float) -> VllmServer:
    spec = VllmSpec(
        name="judge-0",
        model="/models/judge",
        served_name="judge@1",
        settings=VllmJudgeConfig(model="/models/judge", start_timeout_s=settings.get("start_timeout_s", 60.0)),
        on_gpu=False,
        log_file=str(folder / "logs" / "judge-0.log"),
    )
    return VllmServer(spec, host="127.0.0.1", command=lambda port: [sys.executable, "-c", script, str(port)])


def child_in(log: Path) -> psutil.Process:
    return psutil.Process(int(log.read_text().split("child ")[1].split()[0]))


def gone(process: psutil.Process, within_s: float = 20.0) -> bool:
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_it_is_healthy_and_ends_with_what_it_started(tmp_path: Path) -> None:
    judge = server(tmp_path, HEALTHY)
    judge.start()
    assert httpx.get(judge.url.removesuffix("/v1") + "/health", trust_env=False).status_code == 200
    assert judge.is_running
    child = child_in(tmp_path / "logs" / "judge-0.log")
    judge.close()
    judge.close()
    assert gone(child)


def test_a_server_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(JudgeUnavailableError) as error:
        server(tmp_path, BROKEN).start()
    assert "ended with code 3 while starting" in str(error.value)
    assert "ValueError: no such architecture" in str(error.value)
    assert str(tmp_path / "logs" / "judge-0.log") in str(error.value)


def test_a_server_that_never_gets_ready_is_ended_at_the_time_limit(tmp_path: Path) -> None:
    with pytest.raises(JudgeUnavailableError, match=r"not ready within judge\.vllm\.start_timeout_s=3 s[\s\S]*loading"):
        server(tmp_path, MUTE, start_timeout_s=3.0).start()


def test_it_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "judge-0.log"
    script = (
        "import pathlib, time\n"
        "from tests.integration.test_judge_vllm_process import HEALTHY, server\n"
        f"server(pathlib.Path({str(tmp_path)!r}), HEALTHY).start()\n"
        "print('up', flush=True)\ntime.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        child = child_in(log)
        front = child.parent()
        assert front is not None
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert gone(child) and gone(front)


def test_a_server_that_gives_no_answer_is_lost_and_started_again_at_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judge.vllm_actors.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("judge.vllm_actors.HANG_S", 1.0)
    log, hangs = tmp_path / "logs" / "judge-0.log", tmp_path / "hangs"
    post = f"""
    def do_POST(self):
        import os, time
        time.sleep(600 if os.path.exists({str(hangs)!r}) else 0)  # /health is well all the same
        self.send_response(200); self.end_headers()
    def do_GET"""
    actor = VllmActor(server(tmp_path, HEALTHY).spec, local=True)
    actor.server = server(tmp_path, HEALTHY.replace("\n    def do_GET", post))
    url = actor.start()
    try:
        assert actor.server.answers(60.0)
        hangs.touch()
        assert actor.watch() == f"its server gave no answer for 1 s; see {log}"
        child = child_in(log)
        hangs.unlink()
        assert actor.start() == url
        assert actor.server.answers(60.0)
        assert gone(child)
    finally:
        actor.close()
    assert not answers(url.removesuffix("/v1") + "/health")
    assert actor.watch() == "it was closed"


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_vllm_is_asked_for_what_the_settings_say() -> None:
    settings = VllmJudgeConfig(model="m", tensor_parallel=4, gpu_memory_utilization=0.8, max_model_len=16384)
    spec = VllmSpec(name="judge-0", model="/m", served_name="m@1", settings=settings, on_gpu=True, log_file="/l")
    command = server_command(spec, host="10.0.0.1", port=1234)
    pairs = dict(pairwise(command))
    assert pairs["--model"] == "/m"
    assert pairs["--served-model-name"] == "m@1"
    assert (pairs["--host"], pairs["--port"]) == ("10.0.0.1", "1234")
    assert (pairs["--tensor-parallel-size"], pairs["--gpu-memory-utilization"]) == ("4", "0.8")
    assert pairs["--max-model-len"] == "16384"
    assert "--enforce-eager" not in command
    assert "CUDA_VISIBLE_DEVICES" not in server_environment(spec)  # Ray's are the server's
    assert server_environment(spec)["HF_HUB_OFFLINE"] == "1"


@pytest.mark.usefixtures("ray_session")
def test_a_server_that_ends_and_an_actor_that_is_lost_come_back_at_their_address(tmp_path: Path) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")
    spec = replace(server(tmp_path, HEALTHY).spec, name="judge-server-7")
    script = HEALTHY

    def command(port: int) -> list[str]:
        return [sys.executable, "-c", script, str(port)]

    async def mended(number: int) -> list[Fault]:
        ends_at = time.monotonic() + 90.0
        while len(found := [fault for fault in read_faults(tmp_path) if fault.recovery_s is not None]) < number:
            assert time.monotonic() < ends_at
            await asyncio.sleep(0.2)
        return found

    async def scenario() -> list[Fault]:
        servers = VllmServers([spec], [], local=True, faults=faults, command=command)
        try:
            await servers.start()
            url = str(servers.judge_config(JudgeConfig(kind=JudgeKind.VLLM)).endpoints[0].url)
            health = url.removesuffix("/v1") + "/health"
            assert answers(health)
            actor = ray.get_actor("judge-server-7")
            front = child_in(Path(spec.log_file)).parent()
            assert front is not None
            front.kill()
            await mended(1)
            assert answers(health)
            ray.kill(actor)  # the same one still
            found = await mended(2)
            assert answers(health)
            # As if it had been on another node: the next one is told where it is now.
            servers._urls[0] = url.replace("127.0.0.1", "127.0.0.2")
            servers.on_moved = lambda index, new: moved.append((index, new))
            ray.kill(servers._actors[0])
            found = await mended(3)
            assert moved == [(0, url)]
            assert servers.judge_config(JudgeConfig(kind=JudgeKind.VLLM)).endpoints[0].url == url
            return found
        finally:
            await servers.close()

    moved: list[tuple[int, str]] = []
    found = asyncio.run(scenario())
    assert [fault.kind for fault in found] == [FaultKind.JUDGE_ACTOR_LOST] * 3
    assert {fault.who.split(".")[0] for fault in found} == {"judge-server-7"}
    assert found[0].detail == f"its server ended by itself; see {spec.log_file}"
