"""A study: which settings vary, one axis at a time, and over which seeds. Read from `conf/ablation/<name>.yaml`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from mrpo.compose import STUDIES
from mrpo.config.fields import STRICT, NonNegativeInt
from mrpo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One question: overrides in Hydra's multirun grammar; several of them multiply, as on Hydra's command line."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What `conf/ablation/<name>.yaml` says."""

    name: str
    seeds: tuple[int, ...]
    common: tuple[str, ...]  # overrides of every run, also of the default that the axes vary
    axes: tuple[Axis, ...]


@checked_dataclass(kw_only=True, frozen=True, config=STRICT)
class _File:
    """The content of a study's file."""

    seeds: list[NonNegativeInt]
    common: list[str] = field(default_factory=list)
    axes: dict[str, list[str]] = field(default_factory=dict)
    include: list[str] = field(default_factory=list)  # studies whose axes come first


def study_names() -> list[str]:
    """The studies there are."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Read a study with those it includes.

    Raises:
        ConfigError: no such study, an unknown key or wrong type in its file, an axis that comes twice, or none.
    """
    file = _read(name)
    axes = [axis for included in file.include for axis in _included(name, included)]
    axes += [Axis(name=axis, overrides=tuple(overrides)) for axis, overrides in file.axes.items()]
    names = [axis.name for axis in axes]
    twice = sorted({axis for axis in names if names.count(axis) > 1})
    if twice or not axes or not file.seeds:
        fault = f"axis {twice[0]!r} comes twice" if twice else "it needs seeds, and axes or include"
        raise ConfigError(f"conf/ablation/{name}.yaml: {fault}")
    return Study(name=name, seeds=tuple(file.seeds), common=tuple(file.common), axes=tuple(axes))


def _included(name: str, included: str) -> tuple[Axis, ...]:
    """The axes of an included study, which must have no overrides of its own: they would be lost."""
    if included == name:
        raise ConfigError(f"conf/ablation/{name}.yaml includes itself")
    study = load_study(included)
    if study.common:
        raise ConfigError(
            f"conf/ablation/{name}.yaml includes {included!r}, which has common overrides; only studies without can be"
        )
    return study.axes


def _read(name: str) -> _File:
    known = study_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no such study: {name!r}{hint} (known: {', '.join(known)})")
    where = f"conf/ablation/{name}.yaml"
    try:
        tree: Any = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping with seeds and axes, got {type(tree).__name__}")
    try:
        return _File(**tree)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(faults)}") from None
