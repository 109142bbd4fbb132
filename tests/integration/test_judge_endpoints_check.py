"""The check of several endpoints before a run, and settings that name none or too many."""

from __future__ import annotations

import logging

import pytest
from judge_server import Answer, ScriptedServer, closed_port

from judge.check import check_judge
from mrpo.choices import JudgeKind
from mrpo.compose import compose_config
from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import ConfigError, JudgeUnavailableError
from mrpo.judge_endpoints import endpoints_of
from mrpo.judge_permission import is_external

NAMES = ["judge=openai_compatible"]
TWO = "judge.endpoints=[{url:'http://a:8000/v1',model:m},{url:'http://b:8000/v1',model:m,weight:2}]"


def config_of(*urls: str) -> JudgeConfig:
    endpoints = tuple(EndpointConfig(url=url, model="m") for url in urls)
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, endpoints=endpoints)


def dead_url() -> str:
    return f"http://127.0.0.1:{closed_port()}/v1"


def test_one_of_several_is_enough_and_the_others_are_named(caplog: pytest.LogCaptureFixture) -> None:
    dead = dead_url()
    with (
        ScriptedServer(lambda *_: Answer()) as up,
        ScriptedServer(lambda *_: Answer(status=401)) as closed,
        caplog.at_level(logging.WARNING),
    ):
        check_judge(config_of(dead, up.url, closed.url))
    first, second = caplog.messages
    assert dead in first and "does not answer" in first
    assert closed.url in second and "asks for a key" in second


def test_where_none_answers_all_are_named() -> None:
    one, two = dead_url(), dead_url()
    with pytest.raises(JudgeUnavailableError) as caught:
        check_judge(config_of(one, two))
    assert one in str(caught.value) and two in str(caught.value)


def test_a_malformed_url_among_several_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.endpoints='ftp://b/v1'"):
        check_judge(config_of("http://a/v1", "ftp://b/v1"))


def test_endpoints_compose_and_share_by_weight() -> None:
    one, two = endpoints_of(compose_config([*NAMES, TWO]).judge)
    assert (one.url, one.weight, two.url, two.weight) == ("http://a:8000/v1", 1.0, "http://b:8000/v1", 2.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*NAMES], r"judge\.url and judge\.model"),
        ([*NAMES, TWO, "judge.url=http://c/v1"], r"give one form, not both"),
        (["judge=oracle", TWO], r"judge\.endpoints is for judge\.kind=openai_compatible"),
        ([*NAMES, "judge.endpoints=[{url:'http://a/v1',model:m},{url:'http://a/v1/',model:m}]"], "twice"),
        ([*NAMES, "judge.endpoints=[{url:'http://a/v1'}]"], "model"),
        ([*NAMES, "judge.endpoints=[{url:'http://a/v1',model:m,wieght:2}]"], "wieght"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(overrides)


def test_one_endpoint_elsewhere_makes_a_judge_external() -> None:
    assert is_external(config_of("http://localhost:1/v1", "https://judge.example/v1"))
    assert not is_external(config_of("http://localhost:1/v1", "http://127.0.0.1:2/v1"))
