"""Whether a judge may see the data: some sets must not leave the machines of whoever was given access to them."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.data.sets import SETS
from mrpo.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_external(judge: JudgeConfig) -> bool:
    """Whether questions and images leave the user's machines, as far as settings tell."""
    if judge.kind != JudgeKind.OPENAI_COMPATIBLE or judge.on_premises:
        return False
    return urlsplit(judge.url or "").hostname not in LOOPBACK


def require_judge_allowed(datasets: Iterable[str], judge: JudgeConfig) -> None:
    """Refuse to send data to an external judge where its license forbids that.

    Args:
        datasets: names of the sets; one that `mrpo/data/sets.py` does not know is its owner's business.
        judge: of the run.

    Raises:
        ConfigError: a set forbids it.
    """
    if not is_external(judge):
        return
    for name in sorted(set(datasets)):
        if name in SETS and not SETS[name].external_judge_allowed:
            raise ConfigError(
                f"{SETS[name].title} may not be sent to an external judge ({SETS[name].license}), and judge.url="
                f"{judge.url} is not this machine; use a judge of your own and say so with judge.on_premises=true, "
                "or judge=none"
            )
