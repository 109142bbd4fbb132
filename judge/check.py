"""Is there a judge to call? Asked before engines start, because they take minutes to load."""

from __future__ import annotations

import logging

import httpx

from judge.api_key import KeySource, key_source, read_key
from judge.limiter import split_concurrency
from mrpo.choices import JudgeKind
from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import ConfigError, JudgeUnavailableError
from mrpo.host import is_this_machine
from mrpo.judge_endpoints import endpoints_of

logger = logging.getLogger(__name__)
PROBE_TIMEOUT_S = 5.0


def check_judge(config: JudgeConfig) -> None:
    """Check what can be known of the judge before the run; sends each endpoint one GET {url}/models, without any data.

    Of several endpoints one that answers is enough; the others are named in a warning.

    Raises:
        ConfigError: a URL is malformed, a key that the configuration names is not there or is none, or there are more
            actors than calls in flight.
        JudgeUnavailableError: no endpoint answers and takes the key.
    """
    if config.kind == JudgeKind.NONE:
        return
    check_urls(config)
    split_concurrency(config)
    if config.kind != JudgeKind.OPENAI_COMPATIBLE:
        return
    endpoints = endpoints_of(config)
    sources = [key_source(config, endpoint) for endpoint in endpoints]
    keys = [_require_key(endpoint, source) for endpoint, source in zip(endpoints, sources, strict=True)]
    troubles = [_trouble(*item) for item in zip(endpoints, sources, keys, strict=True)]
    found = [trouble for trouble in troubles if trouble is not None]
    if len(found) == len(endpoints):
        raise JudgeUnavailableError("; ".join(found))
    for trouble in found:
        logger.warning("%s; the run starts with the other endpoints", trouble)


def check_urls(config: JudgeConfig) -> None:
    """Check the form of every URL that is given, also of those that this kind of judge does not ask.

    Raises:
        ConfigError: one is malformed or holds a user name or password.
    """
    if config.url is not None:
        _check_url(config.url, "judge.url")
    for endpoint in config.endpoints:
        _check_url(endpoint.url, "judge.endpoints")


def _require_key(endpoint: EndpointConfig, source: KeySource) -> str | None:
    key = read_key(source)
    if key is None and not source.is_default and not is_this_machine(endpoint.url):
        raise ConfigError(
            f"judge.api_key_env={source.variable} names an environment variable that is not set; {source.remedy}"
        )
    return key


def _check_url(text: str, setting: str) -> None:
    expected = "expected a base URL like http://host:8000/v1"
    if "@" in text:
        # Not quoted: it is a secret, and the configuration is written into the run folder.
        raise ConfigError(
            f"{setting} holds a user name or password; put the key into the variable of judge.api_key_env"
        )
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{setting}={text!r} is not a URL ({error}); {expected}") from None
    port_is_fine = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host or not port_is_fine:
        raise ConfigError(f"{setting}={text!r} is not an http(s) URL; {expected}")
    if url.query or url.fragment or url.path.rstrip("/").endswith("/chat/completions"):
        raise ConfigError(f"{setting}={text!r} says more than where the API begins; {expected}")


def _trouble(endpoint: EndpointConfig, source: KeySource, key: str | None) -> str | None:
    """What keeps an endpoint from being used, and the remedy; None: it answers."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    models = f"{endpoint.url.rstrip('/')}/models"
    try:
        with httpx.Client(timeout=PROBE_TIMEOUT_S, trust_env=not is_this_machine(endpoint.url)) as client:
            status = client.get(models, headers=headers).status_code
    except httpx.HTTPError as error:
        return (
            f"judge at {endpoint.url} does not answer ({type(error).__name__}: {error}); start the server or correct "
            "judge.url, or train without a judge by judge.kind=none"
        )
    if status in (401, 403):
        state = "was turned down" if key else "is not set"
        return f"judge at {endpoint.url} asks for a key (HTTP {status}) and {source} {state}; {source.remedy}"
    return None
