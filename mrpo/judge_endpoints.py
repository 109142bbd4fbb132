"""The endpoints a judge's settings name. Pure."""

from __future__ import annotations

from mrpo.config import EndpointConfig, JudgeConfig
from mrpo.errors import ConfigError


def endpoints_of(judge: JudgeConfig) -> tuple[EndpointConfig, ...]:
    """The endpoints that share the calls: `judge.endpoints`, or the one of `judge.url` and `judge.model`.

    Raises:
        ConfigError: there is none, one stands there twice, or both forms are given.
    """
    if not judge.endpoints:
        if not (judge.url and judge.model):
            raise ConfigError(
                "a judge needs judge.url and judge.model (e.g. http://host:8000/v1 and a name it serves), or "
                f"judge.endpoints; got url={judge.url!r}, model={judge.model!r}"
            )
        return (EndpointConfig(url=judge.url, model=judge.model),)
    if judge.url is not None or judge.model is not None:
        raise ConfigError(
            f"judge.endpoints lists {len(judge.endpoints)} endpoint(s), but judge.url={judge.url!r} and judge.model="
            f"{judge.model!r} name another; give one form, not both"
        )
    names = [(endpoint.url.rstrip("/"), endpoint.model) for endpoint in judge.endpoints]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"judge.endpoints has {name[0]} with model {name[1]} twice; raise its weight instead")
    return judge.endpoints


def endpoint_models(judge: JudgeConfig) -> list[str]:
    """The models behind the endpoints, each once.

    Raises:
        ConfigError: see `endpoints_of`.
    """
    return list(dict.fromkeys(endpoint.model for endpoint in endpoints_of(judge)))
