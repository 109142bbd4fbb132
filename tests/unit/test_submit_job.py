"""What is sent to a cluster, and to which address."""

from __future__ import annotations

import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mrpo.errors import ClusterError, ConfigError
from mrpo.submit import address
from mrpo.submit.address import jobs_url, require_answer
from mrpo.submit.entrypoint import job_of
from tests.locations import REPOSITORY


def test_a_job_runs_the_installed_package_and_joins_the_ray_that_runs_it() -> None:
    job = job_of(["seed=3"])
    assert job.entrypoint == f"python -m mrpo.train seed=3 cluster.address=auto run_name={job.name}"
    assert job.experiment == "phantom"
    assert job.name.startswith("phantom-")
    assert job.name != job_of(["seed=3"]).name


def test_an_address_and_a_name_that_are_given_stay() -> None:
    given = "cluster.address=10.0.0.1:6379 run_name=a"
    assert job_of(given.split()).entrypoint.endswith(f"mrpo.train {given}")


def test_a_run_that_is_gone_on_with_gets_no_other_name() -> None:
    assert "run_name" not in job_of(["resume=auto"]).entrypoint


def test_a_shell_reads_the_overrides_back() -> None:
    overrides = ["judge.prices={a:{prompt:0.4,completion:1.6}}", "data.root='/a b/$HOME'", "wandb.project='x;y'"]
    assert shlex.split(job_of(overrides).entrypoint)[3:-2] == overrides


def test_a_typo_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        job_of(["sed=1"])


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("head", "http://head:8265"),
        (" http://10.0.0.1 ", "http://10.0.0.1:8265"),
        ("https://ray.example/cluster", "https://ray.example/cluster"),
        ("http://head/ray", "http://head:8265/ray"),
        ("[fd00::1]:8265", "http://[fd00::1]:8265"),
    ],
)
def test_an_address_means_a_url(given: str, url: str) -> None:
    assert jobs_url(given) == url


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "http://head:port", "head:6379"])
def test_other_addresses_are_refused_with_the_form_expected(given: str) -> None:
    with pytest.raises(ConfigError, match="ADDRESS=http://<head>:8265"):
        jobs_url(given)


def test_without_an_address_rays_own_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no cluster is named"):
        jobs_url("")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert jobs_url("") == "http://head:8265"


def test_nobody_there_is_said_in_a_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(
        ClusterError, match=rf"no Ray dashboard answers at http://127.0.0.1:{port} \(Connection refused\)"
    ):
        require_answer(f"http://127.0.0.1:{port}")


def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "PROBE_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ClusterError, match=r"no answer within 0\.2 s"):
            require_answer(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.fixture
def another_server() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Grafana</html>")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_another_server_there_is_not_taken_for_a_cluster(another_server: str) -> None:
    with pytest.raises(ClusterError, match="is no Ray dashboard"):
        require_answer(another_server)


def test_make_hands_arguments_on_as_they_are_quoted() -> None:
    command = ["make", "-n", "submit", "EXP=internvl3", "ADDRESS=http://head:8265", "ARGS=seed=1 'data.root=/a b'"]
    said = subprocess.run([*command, "num_steps=2"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if "mrpo.submit" in line)
    assert shlex.split(line)[2:] == [
        "mrpo.submit",
        "--address=http://head:8265",
        "--job=",
        "experiment=internvl3",
        "seed=1",
        "data.root=/a b",
        "num_steps=2",
    ]
