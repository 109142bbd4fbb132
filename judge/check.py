"""Is there a judge to call? Asked before engines start, because they take minutes to load."""

from __future__ import annotations

import os
from dataclasses import fields
from urllib.parse import urlsplit

import httpx

from judge.client import is_local
from judge.limiter import split_concurrency
from mrpo.config import JudgeConfig, JudgeKind
from mrpo.errors import ConfigError, JudgeUnavailableError

PROBE_TIMEOUT_S = 5.0
DEFAULT_KEY_ENV = next(item.default for item in fields(JudgeConfig) if item.name == "api_key_env")


def check_judge(config: JudgeConfig) -> None:
    """Check what can be known of the judge before the run; sends one GET {url}/models, without any data of the run.

    Raises:
        ConfigError: the URL is malformed, a key variable named in the configuration is not set, or there are more
            actors than calls in flight.
        JudgeUnavailableError: the endpoint does not answer, or turns the key down.
    """
    if config.kind == JudgeKind.NONE:
        return
    split_concurrency(config)
    if config.kind != JudgeKind.OPENAI_COMPATIBLE:
        return
    assert config.url is not None
    _check_url(config.url)
    key = os.environ.get(config.api_key_env) or None
    # The default variable may be unset: a server in the house often asks for no key, and says so by answering.
    if key is None and config.api_key_env != DEFAULT_KEY_ENV and not is_local(config.url):
        raise ConfigError(
            f"judge.api_key_env={config.api_key_env} names an environment variable that is not set; "
            f"export {config.api_key_env}=<key>"
        )
    _probe(config, key)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ConfigError(f"judge.url={url!r} is not an http(s) URL; expected a base URL like http://host:8000/v1")
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/chat/completions"):
        raise ConfigError(
            f"judge.url={url!r} must be the base URL, e.g. http://host:8000/v1; /chat/completions is added"
        )


def _probe(config: JudgeConfig, key: str | None) -> None:
    assert config.url is not None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    models = f"{config.url.rstrip('/')}/models"
    try:
        with httpx.Client(timeout=PROBE_TIMEOUT_S, trust_env=not is_local(config.url)) as client:
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
