"""From command-line overrides to a checked `Config`, by Hydra; errors name the setting and the remedy in one line."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from mrpo.config import Config, default_tree
from mrpo.errors import ConfigError
from mrpo.validation import build_config

logger = logging.getLogger(__name__)
CONF = Path(conf.__file__).parent
GROUPS = tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml"))))

FIXED = ("seed", "data", "model", "rollout.prompts_per_step", "rollout.group_size")  # within a run, for exact resume


def choices(group: str) -> list[str]:
    """The files of a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose `conf/` with Hydra overrides.

    Raises:
        ConfigError: bad syntax, unknown group choice, unknown key (also behind + or ++), wrong type, contradiction.
    """
    return build_config(_compose_tree([_as_hydra(override) for override in _parse(overrides)]))


def settings_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """Value overrides such as `data.source=here` as a nested tree, for commands that compose no files.

    Raises:
        ConfigError: bad syntax, or a removal.
    """
    tree = OmegaConf.create({})
    for override in _parse(overrides):
        _refuse_removal(override)
        OmegaConf.update(tree, override.key_or_group, override.value(), force_add=True)
    return _plain(tree)


def resume_config(run: Path, overrides: Sequence[str]) -> Config:
    """The configuration of an existing run, with plain value overrides on top.

    Raises:
        ConfigError: as `compose_config`; also for a group choice and for what decides data, model or order, which
            cannot change within a run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={run}: no config.yaml there; give a folder like runs/phantom/<time>")
    tree = OmegaConf.create(yaml.safe_load(file.read_text(encoding="utf-8")))
    for override in _parse(overrides):
        name = override.key_or_group
        fixed = name in FIXED or name.startswith(tuple(f"{group}." for group in FIXED if group in GROUPS))
        if name in GROUPS or (fixed and name != "data.root"):
            raise ConfigError(f"{name}={override.value()} cannot change when a run is resumed; start a new run for it")
        if name != "resume":
            OmegaConf.update(tree, name, override.value(), force_add=True)
    OmegaConf.update(tree, "resume", str(run))
    return build_config(_plain(tree))


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"cannot read an override: {first}; expected key=value, e.g. learner.lr=1e-5") from None


def _as_hydra(override: Override) -> str:
    """Force value overrides in, so that `build_config` is the one that judges keys; check group choices here."""
    name = override.key_or_group
    line = override.input_line
    assert line is not None
    _refuse_removal(override)
    if name in GROUPS:
        choice = str(override.value())
        known = choices(name)
        if choice not in known:
            near = difflib.get_close_matches(choice, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no such {name}: {choice!r}{hint} (known: {', '.join(known)})")
        return f"{name}={choice}"
    return f"++{line.lstrip('+')}"


def _refuse_removal(override: Override) -> None:
    if override.is_delete():
        name = override.key_or_group.lstrip("~")
        raise ConfigError(f"{override.input_line!r}: settings cannot be removed; give {name} a value instead")


def _compose_tree(overrides: list[str]) -> dict[str, Any]:
    ConfigStore.instance().store(name="all_defaults", node=default_tree())
    try:
        with initialize_config_module("conf", version_base="1.3"):
            return _plain(compose("config", overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"conf/ does not compose: {str(error).splitlines()[0]}") from None


def _plain(tree: Any) -> dict[str, Any]:
    plain_tree = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain_tree, dict)
    return {str(key): value for key, value in plain_tree.items()}
