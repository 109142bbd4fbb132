"""Is there a judge to call? Asked before engines start, because they take minutes to load."""

from __future__ import annotations

from dataclasses import fields

import httpx

from judge.api_key import read_api_key
from judge.limiter import split_concurrency
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError, JudgeUnavailableError
from mrpo.host import is_this_machine

PROBE_TIMEOUT_S = 5.0
DEFAULT_KEY_ENV = next(item.default for item in fields(JudgeConfig) if item.name == "api_key_env")


def check_judge(config: JudgeConfig) -> None:
    """Check what can be known of the judge before the run; sends one GET {url}/models, without any data of the run.

    Raises:
        ConfigError: the URL is malformed, a key variable named in the configuration is not set or holds no key, or
            there are more actors than calls in flight.
        JudgeUnavailableError: the endpoint does not answer, or turns the key down.
    """
    if config.kind == JudgeKind.NONE:
        return
    split_concurrency(config)
    if config.kind != JudgeKind.OPENAI_COMPATIBLE:
        return
    assert config.url is not None
    _check_url(config.url)
    key = read_api_key(config.api_key_env)
    # The default variable may be unset: a server in the house often asks for no key, and says so by answering.
    if key is None and config.api_key_env != DEFAULT_KEY_ENV and not is_this_machine(config.url):
        raise ConfigError(
            f"judge.api_key_env={config.api_key_env} names an environment variable that is not set; "
            f"export {config.api_key_env}=<key>"
        )
    _probe(config, key)


def _check_url(text: str) -> None:
    expected = "expected a base URL like http://host:8000/v1"
    if "@" in text:
        # Not quoted: it is a secret, and the configuration is written into the run folder.
        raise ConfigError("judge.url holds a user name or password; put the key into the variable of judge.api_key_env")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"judge.url={text!r} is not a URL ({error}); {expected}") from None
    port_is_fine = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host or not port_is_fine:
        raise ConfigError(f"judge.url={text!r} is not an http(s) URL; {expected}")
    if url.query or url.fragment or url.path.rstrip("/").endswith("/chat/completions"):
        raise ConfigError(f"judge.url={text!r} says more than where the API begins; {expected}")


def _probe(config: JudgeConfig, key: str | None) -> None:
    assert config.url is not None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    models = f"{config.url.rstrip('/')}/models"
    try:
        with httpx.Client(timeout=PROBE_TIMEOUT_S, trust_env=not is_this_machine(config.url)) as client:
            status = client.get(models, headers=headers).status_code
    except httpx.HTTPError as error:
        raise JudgeUnavailableError(
            f"judge at {config.url} does not answer ({type(error).__name__}: {error}); start the server or correct "
            "judge.url, or train without a judge by judge.kind=none"
        ) from None
    if status in (401, 403):
        state = "was turned down" if key else "is not set"
        raise JudgeUnavailableError(
            f"judge at {config.url} asks for a key (HTTP {status}) and {config.api_key_env} {state}; "
            f"export {config.api_key_env}=<key>"
        )
