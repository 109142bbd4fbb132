"""To whom a key is shown, and names that are no names."""

from __future__ import annotations

import pytest

from judge.slots import targets_of
from judge.vllm_server import _without_keys
from mrpo.choices import JudgeKind
from mrpo.compose import compose_config
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError

URL = "http://judge.example:8000/v1"


@pytest.mark.parametrize("kind", JudgeKind)
def test_only_a_judge_of_somebody_elses_is_shown_a_key(kind: JudgeKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPO_JUDGE_API_KEY", "sk-planted")
    (target,) = targets_of(JudgeConfig(kind=kind, url=URL, model="m"))
    assert target.key == ("sk-planted" if kind == JudgeKind.OPENAI_COMPATIBLE else None)
    assert target.trust_env is (kind == JudgeKind.OPENAI_COMPATIBLE)


def test_a_server_of_the_runs_own_asks_for_no_key() -> None:
    there = {"PATH": "/bin", "VLLM_API_KEY": "x", "MRPO_JUDGE_API_KEY": "y"}
    assert _without_keys(there) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "setting",
    [
        "judge.api_key_env=sk-planted-0123",
        f"judge.endpoints=[{{url: '{URL}', model: m, api_key_env: sk-planted-0123}}]",
    ],
)
def test_a_key_given_for_a_name_is_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of an environment variable") as caught:
        compose_config(["judge=openai_compatible", setting])
    assert "planted" not in str(caught.value)
