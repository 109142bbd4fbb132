"""`make submit` against the dashboard of a real Ray: log, exit codes, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from mrpo.errors import MRPOError
from mrpo.submit import client as job_client
from mrpo.submit.client import STOPPED, connect, follow, submit
from mrpo.submit.entrypoint import Job
from tests.locations import REPOSITORY

BIN = Path(sys.executable).parent
START_S, JOB_S = 180, 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of its own, ended with the module."""
    port = free_port()
    log = tmp_path_factory.mktemp("head") / "log"
    command = ["ray", "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}"]
    command += [
        f"--dashboard-agent-listen-port={free_port()}",
        "--num-cpus=1",
        "--object-store-memory=80000000",
        "--disable-usage-stats",
    ]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    with log.open("w") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        await_answer(url, head, log)
        yield url
    finally:
        head.terminate()
        try:
            head.wait(timeout=60)
        finally:
            if head.poll() is None:
                os.killpg(head.pid, signal.SIGKILL)


def await_answer(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no dashboard: {log.read_text()}")


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mrpo.submit", f"--address={url}", *arguments]


def test_a_fault_on_the_cluster_is_streamed_and_its_exit_code_is_the_commands(dashboard: str) -> None:
    answer = subprocess.run(
        command(dashboard, "experiment=vqa_rad_smoke", "data.root='/a folder/that is \"missing\"'"),
        cwd="/",
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},  # must not win over the address given
        capture_output=True,
        text=True,
        timeout=JOB_S,
    )
    assert answer.returncode == 2, answer.stderr
    assert '/a folder/that is "missing"' in answer.stdout  # the job's own error line, quoting intact
    assert "submitted as vqa_rad_smoke-" in answer.stderr
    assert "cluster.address=auto" in answer.stderr
    assert "ended with exit code 2" in answer.stderr


def test_a_log_comes_as_it_is_written_and_whole(dashboard: str) -> None:
    pieces: list[tuple[float, str]] = []
    job = Job(name="slow-log", entrypoint="for i in 1 2 3 4; do echo line $i; sleep 2; done", experiment="phantom")
    client = connect(dashboard)
    submit(client, job)
    code = asyncio.run(follow(client, job.name, lambda text: pieces.append((time.monotonic(), text))))
    assert code == 0
    assert [line for line in "".join(text for _, text in pieces).splitlines() if line.startswith("line")] == [
        "line 1",
        "line 2",
        "line 3",
        "line 4",
    ]
    assert pieces[-1][0] - pieces[0][0] > 2  # not all at the end
    again: list[str] = []
    assert asyncio.run(follow(client, job.name, again.append)) == 0
    assert "".join(again) == "".join(text for _, text in pieces)


def test_ctrl_c_leaves_the_job_running_and_it_can_be_followed_again(dashboard: str) -> None:
    job = Job(name="long", entrypoint="echo begun; sleep 600", experiment="phantom")
    client = connect(dashboard)
    submit(client, job)
    following = subprocess.Popen(
        command(dashboard, "--job=long"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    while "begun" not in (line := following.stdout.readline()):
        assert line, following.communicate()
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=60)
    assert following.returncode == 130
    assert "job long goes on" in said
    assert client.get_job_status(job.name) == "RUNNING"
    client.stop_job(job.name)
    assert asyncio.run(follow(client, job.name, str)) == STOPPED


def test_an_unknown_job_is_named(dashboard: str) -> None:
    answer = subprocess.run(command(dashboard, "--job=nobody"), capture_output=True, text=True, timeout=JOB_S)
    assert answer.returncode == 2
    assert "knows no job 'nobody'" in answer.stderr


class Flaky:
    """A Jobs API whose connections break: each opening shows as many pieces of the log as it is given."""

    def __init__(self, log: list[str], openings: list[int]) -> None:
        self.log, self.openings = log, openings

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        shown = self.openings.pop(0) if self.openings else len(self.log)
        for piece in self.log[:shown]:
            yield piece
        if shown < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, name: str) -> SimpleNamespace:
        status = JobStatus.RUNNING if self.openings else JobStatus.FAILED
        return SimpleNamespace(status=status, driver_exit_code=7)


def test_broken_connections_repeat_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "RETRY_S", 0.0)
    log = ["one\n", "two\nthr", "ee\n", "four\n"]
    shown: list[str] = []
    assert asyncio.run(follow(Flaky(log, [0, 2, 1, 3]), "job", shown.append)) == 7
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"


def test_a_cluster_that_is_gone_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "RETRY_S", 0.01)
    monkeypatch.setattr(job_client, "LOST_S", 0.1)
    gone = Flaky(["one\n"], [0] * 100_000)
    with pytest.raises(MRPOError, match="follow it with JOB=job"):
        asyncio.run(follow(gone, "job", str))


class Dying(Flaky):
    """The first connection dies after a line without a word, the next shows all and is closed."""

    ends_at_once = False

    def __init__(self) -> None:
        super().__init__(["one\n", "two\n", "a traceback\n"], [1])

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        if not self.openings:
            async for piece in super().tail_job_logs(name):
                yield piece
            return
        if self.ends_at_once:
            self.openings.clear()
        yield self.log[0]
        try:
            await asyncio.sleep(3600)
        finally:
            self.openings.clear()


def test_a_connection_that_breaks_after_a_long_silence_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Flaky):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            async for piece in super().tail_job_logs(name):
                yield piece
                await asyncio.sleep(0.3)

    monkeypatch.setattr(job_client, "RETRY_S", 0.0)
    monkeypatch.setattr(job_client, "LOST_S", 0.2)
    shown: list[str] = []
    assert asyncio.run(follow(Slow(["one\n", "two\n"], [1]), "job", shown.append)) == 7
    assert "".join(shown) == "one\ntwo\n"


@pytest.mark.parametrize("ends_at_once", [True, False])
def test_what_a_dead_connection_hid_is_shown(ends_at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "QUIET_S", 0.05)
    monkeypatch.setattr(job_client, "STALE_S", 0.1)
    monkeypatch.setattr(job_client, "RETRY_S", 0.01)
    dying = Dying()
    dying.ends_at_once = ends_at_once  # else the job goes on, and its log is opened again while it runs
    shown: list[str] = []
    assert asyncio.run(asyncio.wait_for(follow(dying, "job", shown.append), 30)) == 7
    assert "".join(shown) == "one\ntwo\na traceback\n"


def test_an_end_that_is_known_is_returned_though_the_cluster_is_gone_then(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending(Flaky):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            if not self.openings:
                raise RuntimeError("Connection refused")
            self.openings.clear()
            yield "one\n"

    monkeypatch.setattr(job_client, "RETRY_S", 0.01)
    monkeypatch.setattr(job_client, "LOST_S", 0.1)
    shown: list[str] = []
    assert asyncio.run(asyncio.wait_for(follow(Ending([], [1]), "job", shown.append), 30)) == 7
    assert shown == ["one\n"]


def test_a_silent_connection_is_left_when_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Flaky):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            yield "one\n"
            await asyncio.sleep(3600)

    monkeypatch.setattr(job_client, "QUIET_S", 0.05)
    shown: list[str] = []
    assert asyncio.run(asyncio.wait_for(follow(Silent([], []), "job", shown.append), 30)) == 7
    assert shown == ["one\n"]
