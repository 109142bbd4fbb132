"""From command-line overrides to a checked `Config`, by Hydra; errors name the setting and the remedy in one line."""

from __future__ import annotations

import copy
import difflib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from mrpo.config import Config, default_tree
from mrpo.errors import ConfigError
from mrpo.run_reading import read_config, read_state, require_current_format
from mrpo.validation import build_config

logger = logging.getLogger(__name__)
CONF = Path(conf.__file__).parent
# No part of a run's configuration.
STUDIES = CONF / "ablation"
ARCHITECTURES = CONF / "architecture"
GROUPS = tuple(
    sorted(
        path.name
        for path in CONF.iterdir()
        if path.is_dir() and any(path.glob("*.yaml")) and path not in (STUDIES, ARCHITECTURES)
    )
)

Adjust = Callable[[Config], Config]

# Settings and sections that stay within a run: a resumed run is exact, and its record has one meaning from end to end.
FIXED = (
    "seed",
    "data",
    "model",
    "algorithm",
    "learner.lora",
    "sft.batch_size",
    "sft.lora",
    "reward",
    "judge.kind",
    "judge.noise",
    "rollout.prompts_per_step",
    "rollout.group_size",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.max_new_tokens",
)
# Of these, where things lie and run.
MOVABLE = ("data.root", "reward.answer.bertscore.placement", "reward.answer.bertscore.batch_size")


def choices(group: str) -> list[str]:
    """The files of a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def compose_config(overrides: Sequence[str], *, adjust: Adjust | None = None) -> Config:
    """Compose `conf/` with Hydra overrides.

    Args:
        overrides: as on the command line.
        adjust: what the command makes of the settings, see `mrpo.validation.build_config`.

    Raises:
        ConfigError: bad syntax, unknown group choice, unknown key (also behind + or ++), wrong type, contradiction.
    """
    parsed = _parse(overrides)
    for override in parsed:
        _refuse_removal(override)
        _refuse_several_values(override)
    groups = [_group_choice(override) for override in parsed if override.key_or_group in GROUPS]
    values = [override for override in parsed if override.key_or_group not in GROUPS]
    return build_config(_compose_tree(groups, values), adjust=adjust)


def settings_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """Value overrides such as `data.source=here` as a nested tree, for commands that compose no files.

    Raises:
        ConfigError: bad syntax, a removal, several values, or settings that contradict each other.
    """
    tree = OmegaConf.create({})
    try:
        for override in _parse(overrides):
            _refuse_removal(override)
            _refuse_several_values(override)
            OmegaConf.update(tree, override.key_or_group, override.value(), force_add=True)
        return _plain(tree)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the overrides do not compose: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value of one override."""

    override: str  # `key=value` as `compose_config` takes it
    label: str  # the same without the grammar's quotes and escapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """An override with all the values it is to take; a plain one has a single value."""

    key: str  # setting or group
    settings: tuple[Setting, ...]


def read_sweeps(overrides: Sequence[str]) -> list[Sweep]:
    """Overrides in Hydra's multirun grammar: `key=1,2`, `key=choice(a,b)`, `key=range(0,3)`.

    Raises:
        ConfigError: bad syntax, a removal, or a sweep without a list of values.
    """
    sweeps = []
    for override in _parse(overrides):
        _refuse_removal(override)
        key = override.key_or_group
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP:
            values = list(override.sweep_string_iterator())
        else:
            raise ConfigError(f"{override.input_line!r} has no list of values; write them out: {key}=<one>,<another>")
        sweeps.append(Sweep(key=key, settings=tuple(_setting(f"{key}={value}") for value in values)))
    return sweeps


def _setting(line: str) -> Setting:
    (override,) = _parse([line])
    value = override.value()
    text = value if isinstance(value, str) else json.dumps(value)
    return Setting(override=line, label=f"{override.key_or_group}={text}")


def resume_config(run: Path, overrides: Sequence[str], *, adjust: Adjust | None = None) -> Config:
    """The configuration of an existing run, with overrides on top; `adjust` as in `compose_config`.

    The command that began the run may be given again as it was, choices of groups included, as a scheduler does.

    Raises:
        ConfigError: as `compose_config`; also for what is `FIXED` within a run, where a choice or a value changes it.
        DataError: the run folder is damaged, or of another version's format.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={run}: no config.yaml there; give a folder like runs/phantom/<time>")
    require_current_format(run, read_state(run))
    saved = read_config(run)
    given = _parse(overrides)
    _refuse_other_name(given, run)
    parsed = [override for override in given if override.key_or_group not in ("resume", "experiment", "run_name")]
    for override in parsed:
        _refuse_removal(override)
        _refuse_several_values(override)
    try:
        values = {override.key_or_group: override.value() for override in parsed if override.key_or_group not in GROUPS}
        asked = {**_settings_of_groups(parsed, saved, but=values), **values}
        tree = OmegaConf.create(saved)
        for name, value in asked.items():
            _refuse_fixed(name, value, saved)
            OmegaConf.update(tree, name, value, force_add=True)
        return build_config({**_plain(tree), "resume": str(run)}, adjust=adjust)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file} and the overrides do not compose: {str(error).splitlines()[0]}") from None


def _settings_of_groups(parsed: Sequence[Override], saved: dict[str, Any], *, but: Collection[str]) -> dict[str, Any]:
    """What the group choices of a command come to, setting by setting, so that it may be given again as it was.

    Args:
        parsed: all overrides.
        saved: configuration of the run, whose experiment has its say over the groups as when the run began.
        but: settings that the command also gives one by one.
    """
    groups = [_group_choice(override) for override in parsed if override.key_or_group in GROUPS]
    if not groups:
        return {}
    own = [name for name in choices("experiment") if saved["experiment"] in (name, f"{name}_sft")]
    composed = OmegaConf.create(_compose_tree([*groups, *(f"experiment={name}" for name in own)], []))
    names = [name for group in groups for name in _settings_of(*group.split("=", 1))]
    given = tuple(f"{name}." for name in but)
    return {name: OmegaConf.select(composed, name) for name in names if not f"{name}.".startswith(given)}


def _settings_of(group: str, choice: str) -> list[str]:
    """Dotted names of what a file of a group sets, with the files of its group that it builds on."""
    text = (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text) or {}
    base = [name for name in tree.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    names = [name for other in base for name in _settings_of(group, other)]
    prefix = "" if "@package _global_" in text else f"{group}."
    return names + [f"{prefix}{name}" for name in _leaves(tree)]


def _leaves(tree: dict[str, Any]) -> list[str]:
    names = []
    for key, value in tree.items():
        names += [f"{key}.{name}" for name in _leaves(value)] if isinstance(value, dict) and value else [str(key)]
    return names


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"cannot read an override: {first}; expected key=value, e.g. learner.lr=1e-5") from None


def _group_choice(override: Override) -> str:
    name, choice = override.key_or_group, str(override.value())
    known = choices(name)
    if choice not in known:
        near = difflib.get_close_matches(choice, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no such {name}: {choice!r}{hint} (known: {', '.join(known)})")
    return f"{name}={choice}"


def _refuse_removal(override: Override) -> None:
    if override.is_delete():
        name = override.key_or_group.lstrip("~")
        raise ConfigError(f"{override.input_line!r}: settings cannot be removed; give {name} a value instead")


def _refuse_several_values(override: Override) -> None:
    if override.is_sweep_override():
        line, name = override.input_line, override.key_or_group
        raise ConfigError(
            f"{line!r}: expected one value (a list is written {name}=[a,b]); several are for make ablation"
        )


def _refuse_other_name(given: Sequence[Override], run: Path) -> None:
    names = [override.value() for override in given if override.key_or_group == "run_name"]
    if names and names[-1] not in (None, run.resolve().name):
        raise ConfigError(
            f"run_name={names[-1]} and resume={run} name two runs; leave run_name out, or set resume=auto to go on "
            "with the run of that name"
        )


def _refuse_fixed(name: str, value: Any, saved: dict[str, Any]) -> None:
    is_fixed = any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED)
    if not is_fixed or name in MOVABLE or OmegaConf.select(OmegaConf.create(saved), name, default=...) == value:
        return
    raise ConfigError(f"{name}={value} cannot change when a run is resumed; start a new run for it")


def _compose_tree(groups: Sequence[str], values: Sequence[Override]) -> dict[str, Any]:
    """Force values in as Hydra's `++` does, also new keys, so that `build_config` is the one that judges keys."""
    try:
        tree = copy.deepcopy(_compose_groups(tuple(groups)))
        for override in values:
            OmegaConf.update(tree, override.key_or_group, override.value(), force_add=True)
        return _plain(tree)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"conf/ does not compose: {str(error).splitlines()[0]}") from None


@cache
def _compose_groups(groups: tuple[str, ...]) -> Any:
    """Hydra's share, which takes a tenth of a second: the files of `conf/` merged, not yet resolved."""
    ConfigStore.instance().store(name="all_defaults", node=default_tree())
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(groups))


def _plain(tree: Any) -> dict[str, Any]:
    plain_tree = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain_tree, dict)
    return {str(key): value for key, value in plain_tree.items()}
