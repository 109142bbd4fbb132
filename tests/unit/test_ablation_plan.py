"""From a study to its runs: how many, which share a run, and what is refused before anything starts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from mrpo.ablation import study as study_module
from mrpo.ablation.__main__ import split_arguments
from mrpo.ablation.plan import Plan, make_plan, variant_key
from mrpo.ablation.results import short_label
from mrpo.ablation.study import Axis, Study, load_study, study_names
from mrpo.choices import Schedule, Shaping
from mrpo.compose import choices, compose_config, read_sweeps
from mrpo.errors import ConfigError

E = "2.718281828459045"
AXES = {  # settings of each axis, the default among them
    "base": 4,
    "schedule": 4,
    "steps": 3,
    "threshold": 3,
    "process_reward": 2,
    "step_count_reward": 2,
    "judge_noise": 4,
}


def study_of(*axes: Axis, seeds: tuple[int, ...] = (0,), common: tuple[str, ...] = ()) -> Study:
    return Study(name="made_up", seeds=seeds, common=common, axes=axes)


BASE = Axis(name="base", overrides=(f"algorithm.base=1,{E}",))
SCHEDULE = Axis(name="schedule", overrides=("algorithm.schedule=exponential,linear",))


def settings_of(plan: Plan) -> list[tuple[str, ...]]:
    return [entry.settings for entry in plan.entries]


@pytest.mark.parametrize("name", [*AXES, "algorithms", "smoke"])
def test_a_study_of_the_project_has_its_default_once_a_seed(name: str) -> None:
    study = load_study(name)
    plan = make_plan(study)
    num_defaults = sum(entry.is_default for entry in plan.entries)
    assert num_defaults == len(study.axes) * len(study.seeds)
    expected = {**{axis: 3 * num for axis, num in AXES.items()}, "algorithms": 3 * 10, "smoke": 3}
    assert len(plan.variants) == expected[name]


def test_all_is_every_axis_around_one_default_with_three_seeds() -> None:
    plan = make_plan(load_study("all"))
    assert Counter(entry.axis for entry in plan.entries) == {axis: 3 * num for axis, num in AXES.items()}
    assert len(plan.variants) == 3 * (sum(num - 1 for num in AXES.values()) + 1) == 48
    defaults = {entry.key for entry in plan.entries if entry.is_default}
    assert defaults == {variant_key(compose_config([f"seed={seed}"])) for seed in (0, 1, 2)}
    # seed by seed, so that the first third of the time already shows every axis once
    assert [variant.config.seed for variant in plan.variants] == [0] * 16 + [1] * 16 + [2] * 16


def test_the_algorithms_of_the_study_are_those_it_names() -> None:
    plan = make_plan(load_study("algorithms"), ["seed=0"])
    shapings = {entry.settings[0].removeprefix("algorithm="): entry.key for entry in plan.entries}
    assert set(shapings) < set(choices("algorithm"))
    configs = {variant.key: variant.config for variant in plan.variants}
    assert configs[shapings["grpo"]].algorithm.shaping == Shaping.NONE
    assert configs[shapings["mrpo_linear"]].algorithm.schedule == Schedule.LINEAR
    assert configs[shapings["grpo_answer_only"]].reward.process_weight == 0.0


def test_axes_share_a_run_where_the_resolved_configuration_is_the_same() -> None:
    algorithms = Axis(name="algorithms", overrides=("algorithm=mrpo,mrpo_uniform",))
    plan = make_plan(study_of(BASE, SCHEDULE, algorithms))
    assert settings_of(plan) == [
        ("algorithm.base=1",),
        (f"algorithm.base={E}",),
        ("algorithm.schedule=exponential",),
        ("algorithm.schedule=linear",),
        ("algorithm=mrpo",),
        ("algorithm=mrpo_uniform",),
    ]
    uniform, default, same, linear, mrpo, mrpo_uniform = [entry.key for entry in plan.entries]
    assert default == same == mrpo
    assert uniform == mrpo_uniform
    assert len({uniform, default, linear}) == 3
    assert [variant.key for variant in plan.variants] == [uniform, default, linear]
    assert [entry.is_default for entry in plan.entries] == [False, True, True, False, True, False]


def test_a_key_tells_settings_and_not_places() -> None:
    key = variant_key(compose_config([]))
    assert key == variant_key(compose_config(["runs_dir=elsewhere", "cache_dir=/there", "run_name=a"]))
    assert key == variant_key(compose_config([f"algorithm.base={E}", "reward.process_weight=1"]))
    assert key != variant_key(compose_config(["seed=1"]))
    assert key != variant_key(compose_config(["judge.noise=0.1"]))


def test_several_sweeps_of_an_axis_multiply() -> None:
    axis = Axis(name="both", overrides=("algorithm.base=2,10", "algorithm.schedule=linear,reversed"))
    plan = make_plan(study_of(axis))
    assert settings_of(plan) == [
        ("algorithm.base=2", "algorithm.schedule=linear"),
        ("algorithm.base=2", "algorithm.schedule=reversed"),
        ("algorithm.base=10", "algorithm.schedule=linear"),
        ("algorithm.base=10", "algorithm.schedule=reversed"),
    ]
    assert not any(entry.is_default for entry in plan.entries)


def test_a_swept_override_of_the_command_line_multiplies_every_axis() -> None:
    plan = make_plan(study_of(BASE), ["learner.lr=1e-4,2e-4"])
    assert settings_of(plan) == [
        ("algorithm.base=1", "learner.lr=0.0001"),
        ("algorithm.base=1", "learner.lr=0.0002"),
        (f"algorithm.base={E}", "learner.lr=0.0001"),
        (f"algorithm.base={E}", "learner.lr=0.0002"),
    ]
    assert [variant.config.learner.lr for variant in plan.variants] == [1e-4, 2e-4, 1e-4, 2e-4]
    assert [entry.is_default for entry in plan.entries] == [False, False, True, True]


def test_a_plain_override_changes_what_the_axes_vary() -> None:
    plan = make_plan(study_of(BASE, SCHEDULE, common=("num_steps=9",)), ["algorithm.base=2", "learner.lr=3e-4"])
    assert all(variant.config.learner.lr == 3e-4 and variant.config.num_steps == 9 for variant in plan.variants)
    assert [entry.is_default for entry in plan.entries] == [False, False, True, False]
    assert [variant.config.algorithm.base for variant in plan.variants] == [1.0, math.e, 2.0, 2.0]
    assert plan.variants[-1].config.algorithm.schedule == Schedule.LINEAR


def test_seeds_come_from_the_study_or_the_command_line() -> None:
    assert [entry.seed for entry in make_plan(study_of(BASE, seeds=(4, 5))).entries] == [4, 4, 5, 5]
    assert {entry.seed for entry in make_plan(study_of(BASE), ["seed=range(0,3)"]).entries} == {0, 1, 2}
    assert {entry.seed for entry in make_plan(study_of(BASE, seeds=(1, 2)), ["seed=7"]).entries} == {7}


@pytest.mark.parametrize(
    ("axis", "overrides", "words"),
    [
        (("algorithm.base=1,-2",), [], ["variant odd: algorithm.base=-2 seed=0", "greater than 0"]),
        (("algorithm.bass=1,2",), [], ["variant odd: algorithm.bass=1", "did you mean 'algorithm.base'"]),
        (("algorithm=mrpo,mpro",), [], ["no such algorithm: 'mpro'", "did you mean 'mrpo'", "variant odd"]),
        (("algorithm.schedule=linear",), ["rollout.max_new_tokens=900"], ["variant odd", "max_model_len"]),
        (("algorithm=mrpo,pure_min",), ["reward.process_weight=0"], ["variant odd: algorithm=pure_min", "process"]),
        (("algorithm.base=1,1.0",), [], ["the same run", "algorithm.base=1 and algorithm.base=1.0"]),
        (("algorithm.base=interval(0,1)",), [], ["no list of values"]),
        (("algorithm.base=1,2",), ["algorithm.base=3,4"], ["axis 'odd' sweeps algorithm.base itself"]),
        (("seed=1,2",), [], ["sweeps seed", "under seeds"]),
        (("algorithm.base=2",), ["resume=auto"], ["resume=auto", "run it again"]),
        (("algorithm.base=2",), ["runs_dir=a,b"], ["runs_dir", "one place"]),
        (("algorithm.base=2",), ["seed=x"], ["variant odd", "seed='x'"]),
        (("algorithm.base=2",), ["~learner.lr"], ["cannot be removed"]),
    ],
)
def test_what_is_refused_names_the_variant_before_anything_starts(
    axis: tuple[str, ...], overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_plan(study_of(Axis(name="odd", overrides=axis)), overrides)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (
            "base",
            ["algorithm=grpo"],
            ["axis 'base' varies algorithm.base", "shaping=none", "set algorithm.shaping=mrpo"],
        ),
        ("base", ["algorithm=pure_min"], ["algorithm.base", "algorithm.shaping=pure"]),
        ("base", ["judge=none"], ["algorithm.base", "judge.kind=none", "set a judge"]),
        ("base", ["algorithm.schedule=none"], ["algorithm.base", "algorithm.schedule=none", "=exponential"]),
        ("schedule", ["algorithm=grpo"], ["axis 'schedule' varies algorithm.schedule", "shaping=none"]),
        ("schedule", ["algorithm=mrpo_uniform"], ["algorithm.schedule", "algorithm.base=1"]),
        ("threshold", ["algorithm=gdpo"], ["algorithm.threshold", "algorithm.shaping=none"]),
        ("judge_noise", ["judge=none"], ["axis 'judge_noise' varies judge.noise", "judge.kind=none"]),
        ("judge_noise", ["algorithm=grpo_answer_only"], ["judge.noise", "reward.process_weight=0", "process_weight=1"]),
        ("process_reward", ["judge=none"], ["reward.process_weight", "judge.kind=none"]),
        ("steps", ["algorithm=grpo_answer_only"], ["algorithm.step_strategy", "reward.step_count_weight=0"]),
        ("all", ["algorithm=grpo"], ["axis 'base' varies algorithm.base"]),
        ("steps", ["algorithm.credit_temperature=0,0.1"], ["the command line varies algorithm.credit_temperature"]),
        ("schedule", ["algorithm.base=2,3"], ["the command line varies algorithm.base", "schedule=none", "variant"]),
        ("base", ["algorithm.base=2"], ["algorithm.base=2: every axis of study 'base' sets algorithm.base itself"]),
        ("algorithms", ["algorithm=grpo"], ["algorithm=grpo: every axis of study 'algorithms'"]),
    ],
)
def test_a_study_whose_settings_change_no_training_is_refused(
    name: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_plan(load_study(name), [*overrides, "seed=0"])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_what_training_reads_may_vary() -> None:
    for name, overrides, num_runs in (
        ("judge_noise", ["algorithm=grpo"], 4),  # through the process reward
        ("steps", ["algorithm=grpo_answer_only", "reward.step_count_weight=1"], 3),
        ("process_reward", ["algorithm=grpo"], 2),
        ("step_count_reward", ["judge=none"], 2),
        ("schedule", ["algorithm.base=2"], 4),
        ("all", ["algorithm.base=2"], 16),
    ):
        assert len(make_plan(load_study(name), [*overrides, "seed=0"]).variants) == num_runs


def test_sweeps_are_read_by_hydras_own_grammar() -> None:
    lines = ["algorithm.step_strategy=sentence,fixed_tokens:8", "++seed=choice(3,1)", "data.root='a, b'"]
    strategy, seed, root = read_sweeps(lines)
    assert [setting.label for setting in strategy.settings] == [
        "algorithm.step_strategy=sentence",
        "algorithm.step_strategy=fixed_tokens:8",
    ]
    assert compose_config([strategy.settings[1].override]).algorithm.step_strategy == "fixed_tokens:8"
    assert (seed.key, [setting.override for setting in seed.settings]) == ("seed", ["seed=3", "seed=1"])
    assert [setting.label for setting in root.settings] == ["data.root=a, b"]
    assert compose_config([root.settings[0].override]).data.root == "a, b"


def test_a_label_keeps_what_tells_settings_apart() -> None:
    assert short_label([f"algorithm.base={E}"]) == "base=2.718"
    assert short_label(["algorithm=mrpo", "learner.lr=0.0001"]) == "algorithm=mrpo lr=0.0001"
    assert short_label(["algorithm.step_strategy=fixed_tokens:8"]) == "step_strategy=fixed_tokens:8"


def test_a_study_is_no_setting_of_a_run() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'ablation'"):
        compose_config(["ablation=smoke"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: [0]\naxis: {}", ["axis: Unexpected keyword"]),
        ("seeds: [-1]\naxes: {base: [algorithm.base=1]}", ["seeds.0", "greater than or equal to 0"]),
        ("axes: {base: [algorithm.base=1]}", ["seeds", "required"]),
        ("seeds: []\naxes: {base: [algorithm.base=1]}", ["needs seeds"]),
        ("seeds: [0]", ["axes or include"]),
        ("seeds: [0]\ninclude: [mine]", ["includes itself"]),
        ("seeds: [0]\ninclude: [short]", ["includes 'short'", "common"]),
        ("seeds: [0]\ninclude: [one]\naxes: {base: [algorithm.base=1]}", ["axis 'base' comes twice"]),
        ("seeds: [0]\ninclude: [oen]", ["no such study: 'oen'", "did you mean 'one'"]),
        ("- seeds", ["expected a mapping", "list"]),
        ("seeds: [", ["no YAML"]),
    ],
)
def test_a_bad_study_file_is_named(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.yaml").write_text("seeds: [0]\naxes: {base: ['algorithm.base=1,2']}")
    (tmp_path / "short.yaml").write_text(
        "seeds: [0]\ncommon: [num_steps=2]\naxes: {schedule: [algorithm.schedule=none]}"
    )
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(study_module, "STUDIES", tmp_path)
    assert load_study("one").axes == (Axis(name="base", overrides=("algorithm.base=1,2",)),)
    with pytest.raises(ConfigError) as error:
        load_study("mine")
    for word in ["conf/ablation/" if "no such" not in words[0] else "study", *words]:
        assert word in str(error.value)


def test_the_command_line_needs_one_study() -> None:
    assert split_arguments(["study=base", "seed=1"]) == ("base", ["seed=1"])
    assert {"all", "algorithms", "smoke", *AXES} == set(study_names())
    for arguments in ([], ["seed=1"], ["study=a", "study=b"]):
        with pytest.raises(ConfigError, match="expected one study=<name> of algorithms, all, base"):
            split_arguments(arguments)
