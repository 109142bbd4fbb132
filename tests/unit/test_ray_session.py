"""A Ray that does not come up is told in a line with the remedy."""

from __future__ import annotations

import socket
import time

import pytest

from mrpo.config import ClusterConfig, Config
from mrpo.errors import ClusterError, ResourceError
from mrpo.ray_session import init_ray


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.parametrize(
    "error",
    [
        # As Ray words it, in an `Exception` as such.
        Exception("The current node timed out during startup. This could happen because some of the raylet failed."),
        RuntimeError("Failed to start GCS.\nLast lines of its log"),
        TimeoutError(),
    ],
)
def test_a_node_that_does_not_start(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, error)
    with pytest.raises(
        ResourceError, match=r"Ray did not start on this machine .*try again, after `ray stop`"
    ) as caught:
        init_ray(Config(), learner=True, engines=True)
    assert (str(error).split("\n")[0].rstrip(".") or "TimeoutError") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bug_is_not_laid_at_the_machines_door(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, TypeError("init() got an unexpected keyword argument"))
    with pytest.raises(TypeError):
        init_ray(Config(), learner=True, engines=True)


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, ConnectionError("Could not find any running Ray instance. Please specify the one to connect to."))
    config = Config(cluster=ClusterConfig(address="auto"))
    with pytest.raises(ClusterError, match=r"cluster\.address=auto \(Could not find.*ray start --head"):
        init_ray(config, learner=True, engines=True)


def test_a_port_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        config = Config(cluster=ClusterConfig(address=f"127.0.0.1:{taken.getsockname()[1]}"))
        started = time.monotonic()
        with pytest.raises(ClusterError, match=r"cluster\.address=127\.0\.0\.1:\d+ \(.*refused.*ray start --head"):
            init_ray(config, learner=True, engines=True)
        assert time.monotonic() - started < 60.0  # Ray itself looks for minutes
