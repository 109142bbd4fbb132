"""Where a cluster's Jobs API listens, and whether anybody answers there."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import requests

from mrpo.errors import ClusterError, ConfigError

DASHBOARD_PORT = 8265  # Ray's default
GCS_PORT = 6379  # what `ray start --head` prints first, and what people paste
FROM_ENVIRONMENT = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray lets them override what a caller asks for
PROBE_S = 10.0
EXAMPLE = f"ADDRESS=http://<head>:{DASHBOARD_PORT}"


def jobs_url(address: str) -> str:
    """The URL of the Jobs API that a user's `address` means.

    Args:
        address: `http(s)://host:port`, `host:port` or `host`; "" takes RAY_API_SERVER_ADDRESS.

    Raises:
        ConfigError: no address, or one of another kind.
    """
    given = address.strip() or os.environ.get(FROM_ENVIRONMENT[0], "")
    if not given:
        raise ConfigError(f"no cluster is named; give the address of its dashboard: {EXAMPLE}")
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"ADDRESS={given!r} is no address of a Ray dashboard; expected {EXAMPLE}")
    if port == GCS_PORT:
        raise ConfigError(
            f"ADDRESS={given!r} is the port of Ray's own protocol; jobs are taken by the dashboard: {EXAMPLE}"
        )
    if port is None and parts.scheme == "http":
        url = f"http://{parts.netloc}:{DASHBOARD_PORT}{parts.path}"
    return url.rstrip("/")


def require_answer(url: str) -> None:
    """Ask for Ray's version there, with a deadline: Ray's own client waits as long as the network does.

    Raises:
        ClusterError: nobody answers, or somebody else does.
    """
    try:
        answer = requests.get(f"{url}/api/version", timeout=PROBE_S)
    except requests.RequestException as error:
        raise ClusterError(
            f"no Ray dashboard answers at {url} ({_cause(error)}); check that the cluster is up and that this machine "
            f"reaches its port (from elsewhere: ssh -L {DASHBOARD_PORT}:localhost:{DASHBOARD_PORT} <head>)"
        ) from None
    if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        return  # it is there and wants a token, which Ray's client sends
    if answer.status_code != requests.codes.ok or "ray_version" not in answer.text:
        raise ClusterError(f"{url} answers (HTTP {answer.status_code}) but is no Ray dashboard; expected {EXAMPLE}")


def _cause(error: requests.RequestException) -> str:
    """The innermost reason, without the layers of wrapping around it."""
    if isinstance(error, requests.Timeout):
        return f"no answer within {PROBE_S:g} s"
    text = str(error)
    return next((reason for reason in ("Connection refused", "Name or service not known") if reason in text), text)
