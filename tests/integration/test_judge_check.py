"""The check before a run, against real servers."""

from __future__ import annotations

from typing import Any

import pytest
from judge_server import Answer, ScriptedServer, closed_port

from judge.check import check_judge
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError, JudgeUnavailableError, UserError

DEFAULT_ENV = JudgeConfig().api_key_env


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEFAULT_ENV, raising=False)
    monkeypatch.delenv("HOUSE_KEY", raising=False)


def config_of(url: str, **changes: Any) -> JudgeConfig:
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=url, model="m", **changes)


@pytest.mark.parametrize("status", [200, 404, 405, 500])
def test_any_reply_means_reachable(status: int) -> None:
    with ScriptedServer(lambda *_: Answer(status=status)) as server:
        check_judge(config_of(server.url))
    assert [(request.method, request.path) for request in server.requests] == [("GET", "/v1/models")]


def test_a_slash_at_the_end_does_not_matter() -> None:
    with ScriptedServer(lambda *_: Answer()) as server:
        check_judge(config_of(server.url + "/"))
    assert server.requests[0].path == "/v1/models"


def test_nobody_listening_is_one_line_with_a_remedy() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(JudgeUnavailableError) as caught:
        check_judge(config_of(url))
    message = str(caught.value)
    assert url in message
    assert "judge.url" in message
    assert "judge.kind=none" in message
    assert "\n" not in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_key_is_named(status: int) -> None:
    with (
        ScriptedServer(lambda *_: Answer(status=status)) as server,
        pytest.raises(JudgeUnavailableError, match=f"{DEFAULT_ENV} is not set; export {DEFAULT_ENV}="),
    ):
        check_judge(config_of(server.url))


def test_a_wrong_key_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE_KEY", "sk-wrong")
    with ScriptedServer(lambda *_: Answer(status=401)) as server:
        with pytest.raises(JudgeUnavailableError, match="HOUSE_KEY was turned down") as caught:
            check_judge(config_of(server.url, api_key_env="HOUSE_KEY"))
        assert server.requests[0].headers["authorization"] == "Bearer sk-wrong"
    assert "sk-wrong" not in str(caught.value)


def test_a_variable_named_for_a_remote_judge_must_be_set() -> None:
    with pytest.raises(ConfigError, match="HOUSE_KEY names an environment variable that is not set"):
        check_judge(config_of("https://judge.example/v1", api_key_env="HOUSE_KEY"))


@pytest.mark.parametrize(
    "url",
    [
        "judge:8000/v1",
        "localhost:8000",
        "ftp://host/v1",
        "http:///v1",
        "http://[::1/v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://host:8000/v1/chat/completions",
        "http://host:8000/v1?key=1",
        "http://user:secret@host:8000/v1",
        "http://user:secret@host:port/v1",
        "http://host:0/v1",
        "http://ho st/v1",
        "http://host\n/v1",
        "",
    ],
)
def test_a_malformed_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ConfigError, match=r"judge\.url") as caught:
        check_judge(config_of(url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-öffentlich", "sk-one\nsk-two", "sk one"])
def test_a_value_that_is_no_key_is_refused_without_being_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE_KEY", key)
    with pytest.raises(ConfigError, match="HOUSE_KEY holds characters that no API key has") as caught:
        check_judge(config_of(f"http://127.0.0.1:{closed_port()}/v1", api_key_env="HOUSE_KEY"))
    assert "sk" not in str(caught.value)


@pytest.mark.parametrize("kind", [JudgeKind.ORACLE, JudgeKind.NONE])
def test_a_judge_without_an_endpoint_needs_none(kind: JudgeKind) -> None:
    check_judge(JudgeConfig(kind=kind))


def test_more_actors_than_calls_is_refused_for_every_judge() -> None:
    with pytest.raises(UserError, match=r"judge\.num_actors"):
        check_judge(JudgeConfig(kind=JudgeKind.ORACLE, concurrency=1, num_actors=2))
