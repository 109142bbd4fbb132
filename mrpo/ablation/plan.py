"""From a study to training runs: every one checked before the first starts, none twice."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from mrpo.ablation.study import Axis, Study
from mrpo.ablation.unread import find_unread
from mrpo.compose import Setting, Sweep, compose_config, read_sweeps
from mrpo.config import Config, plain
from mrpo.errors import ConfigError

PLACES = ("runs_dir", "run_name", "cache_dir", "resume")  # where a run is, not what it is
KEY_LENGTH = 12  # hexadecimal digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One training run."""

    key: str  # of its configuration
    label: str  # the first row it is in, for people
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the study's table: a variant at its place on an axis. Axes that share the default share its run."""

    axis: str
    settings: tuple[str, ...]  # `key=value`, what the axis and a swept command line changed
    seed: int
    key: str  # of the variant
    is_default: bool  # what the axes vary


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All runs of a study, seed by seed, and the rows they make."""

    study: str
    variants: tuple[Variant, ...]
    entries: tuple[Entry, ...]


def make_plan(study: Study, overrides: Sequence[str] = ()) -> Plan:
    """Expand a study and check each of its configurations.

    Args:
        study: axes are taken one at a time.
        overrides: plain ones change what the axes vary; swept ones multiply every axis, as with Hydra's multirun;
            `seed=` replaces the study's seeds.

    Raises:
        ConfigError: a configuration is refused (the message names the variant), an axis makes the same run twice or
            varies what training does not read, or an override is of what every axis sets.
    """
    own = read_sweeps(overrides)
    given = [*read_sweeps(study.common), *own]
    _refuse_places(given)
    seeds = next((sweep for sweep in reversed(given) if sweep.key == "seed"), None)
    seed_lines = [f"seed={seed}" for seed in study.seeds] if seeds is None else _overrides(seeds.settings)
    common = {sweep.key: sweep.settings[0].override for sweep in given if len(sweep.settings) == 1}
    swept = [sweep for sweep in given if len(sweep.settings) > 1 and sweep.key != "seed"]
    axes = [(axis, _axis_sweeps(axis, swept)) for axis in study.axes]
    _refuse_overridden(study.name, own, [sweeps for _, sweeps in axes])

    compose = cache(compose_config)  # takes a tenth of a second, and every row asks for its default too
    variants: dict[str, Variant] = {}
    entries: list[Entry] = []
    for seed_line in seed_lines:
        for axis, sweeps in axes:
            for settings in itertools.product(*(sweep.settings for sweep in (*sweeps, *swept))):
                labels = tuple(setting.label for setting in settings)
                lines = common | _by_key((*sweeps, *swept), settings) | {"seed": seed_line}
                variant = _variant(compose, axis.name, (*labels, seed_line), lines.values())
                default = common | _by_key(swept, settings[len(sweeps) :]) | {"seed": seed_line}
                _refuse_unread(f"axis {axis.name!r}", _varied(sweeps) or sweeps, variant, "take a study without it")
                _refuse_unread("the command line", swept, variant, "give it one value")
                variant = variants.setdefault(variant.key, variant)
                entry = Entry(
                    axis=axis.name,
                    settings=labels,
                    seed=variant.config.seed,
                    key=variant.key,
                    is_default=variant.config
                    == _variant(compose, axis.name, ("the default",), default.values()).config,
                )
                _refuse_twice(entry, entries)
                entries.append(entry)
    return Plan(study=study.name, variants=tuple(variants.values()), entries=tuple(entries))


def variant_key(config: Config) -> str:
    """The name of a configuration: the same for the same values, wherever the run lies."""
    tree = {name: value for name, value in plain(config).items() if name not in PLACES}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def _variant(
    compose: Callable[[tuple[str, ...]], Config], axis: str, labels: Sequence[str], overrides: Iterable[str]
) -> Variant:
    label = f"{axis}: {' '.join(labels)}"
    lines = tuple(overrides)
    try:
        config = compose(lines)
    except ConfigError as error:
        raise ConfigError(f"variant {label}: {error}") from None
    return Variant(key=variant_key(config), label=label, overrides=lines, config=config)


def _axis_sweeps(axis: Axis, swept: Sequence[Sweep]) -> list[Sweep]:
    sweeps = read_sweeps(axis.overrides)
    _refuse_places(sweeps)
    own = {sweep.key for sweep in sweeps}
    both = sorted(own & {sweep.key for sweep in swept})
    if both or "seed" in own:
        raise ConfigError(
            f"axis {axis.name!r} sweeps {both[0]} itself; choose a study without it, or give one value"
            if both
            else f"axis {axis.name!r} sweeps seed; list the study's seeds under seeds"
        )
    return sweeps


def _by_key(sweeps: Sequence[Sweep], settings: Sequence[Setting]) -> dict[str, str]:
    return {sweep.key: setting.override for sweep, setting in zip(sweeps, settings, strict=True)}


def _overrides(settings: Sequence[Setting]) -> list[str]:
    return [setting.override for setting in settings]


def _refuse_places(sweeps: Sequence[Sweep]) -> None:
    for sweep in sweeps:
        if sweep.key == "resume" or (sweep.key in PLACES and len(sweep.settings) > 1):
            raise ConfigError(
                f"{sweep.settings[0].label}: a study decides by itself which of its runs to resume; run it again"
                if sweep.key == "resume"
                else f"{sweep.key} is one place for the whole study; give one value"
            )


def _varied(sweeps: Sequence[Sweep]) -> list[Sweep]:
    return [sweep for sweep in sweeps if len(sweep.settings) > 1]


def _refuse_unread(who: str, sweeps: Sequence[Sweep], variant: Variant, other_remedy: str) -> None:
    """Training the same again under another name costs hours and looks like a finding."""
    for sweep in sweeps:
        unread = find_unread(sweep.key, variant.config)
        if unread is not None:
            raise ConfigError(
                f"{who} varies {sweep.key}, which changes no training with {unread.cause} (variant {variant.label}); "
                f"{unread.remedy}, or {other_remedy}"
            )


def _refuse_overridden(study: str, own: Sequence[Sweep], axes: Sequence[Sequence[Sweep]]) -> None:
    for sweep in own:
        if all(sweep.key in {other.key for other in sweeps} for sweeps in axes):
            raise ConfigError(
                f"{sweep.settings[0].label}: every axis of study {study!r} sets {sweep.key} itself, so that this "
                "changes no run; leave it out, or take a study of other axes"
            )


def _refuse_twice(entry: Entry, entries: Sequence[Entry]) -> None:
    for other in entries:
        if (other.axis, other.key) == (entry.axis, entry.key):
            raise ConfigError(
                f"axis {entry.axis!r} makes the same run of {' '.join(other.settings)} and {' '.join(entry.settings)} "
                f"(seed {entry.seed}); leave one out"
            )
