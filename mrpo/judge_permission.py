"""Whether a judge may see the data: some sets must not leave the machines of whoever was given access to them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.data.sets import NO_EXTERNAL_JUDGE, SETS, Layout
from mrpo.errors import ConfigError
from mrpo.host import is_this_machine
from mrpo.judge_endpoints import endpoints_of
from mrpo.types import Example

RESTRICTED = re.compile(rf"credential|physionet|gated|no redistribution|{NO_EXTERNAL_JUDGE}", re.IGNORECASE)


def is_external(judge: JudgeConfig) -> bool:
    """Whether questions and images leave the user's machines, as far as settings tell."""
    if judge.kind != JudgeKind.OPENAI_COMPATIBLE or judge.on_premises:
        return False
    return bool(_elsewhere(judge))


def require_judge_allowed(examples: Iterable[Example], judge: JudgeConfig) -> None:
    """Refuse to send data to an external judge where its license forbids that.

    A set that `mrpo/data/sets.py` does not know, or that is given a license of its own, is its owner's business unless
    that license speaks of restricted access.

    Raises:
        ConfigError: a set forbids it.
    """
    if not is_external(judge):
        return
    for name, license_text in sorted({(example.dataset, example.license) for example in examples}):
        spec = SETS.get(re.sub(r"[^a-z0-9]+", "_", name.casefold()))
        # Published files may be of any sets: what their owner says in the license decides.
        by_set = spec is not None and spec.loader != Layout.PUBLISHED and not spec.external_judge_allowed
        if by_set or RESTRICTED.search(license_text):
            raise ConfigError(
                f"{spec.title if spec else name} may not be sent to an external judge ({license_text}), and the judge "
                f"at {_elsewhere(judge)[0]} is not this machine; use a judge of your own and say so with "
                "judge.on_premises=true, judge=vllm, which serves one for the run, or judge=none"
            )


def _elsewhere(judge: JudgeConfig) -> list[str]:
    """The endpoints on other machines."""
    return [endpoint.url for endpoint in endpoints_of(judge) if not is_this_machine(endpoint.url)]
