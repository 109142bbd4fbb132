"""Configuration: composition, typed values, unknown keys, contradictions, resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.choices import STEP_CREDITING, JudgeKind, Shaping
from mrpo.compose import choices, compose_config, resume_config, settings_tree
from mrpo.config import Config, default_tree, plain
from mrpo.errors import ConfigError, DataError
from mrpo.run_folder import RunFolder
from mrpo.validation import build_config

NEEDS = ["data.root=/data", "judge.url=http://localhost:1/v1", "judge.model=judge"]


def test_the_default_is_phantom_with_the_defaults_of_the_dataclasses() -> None:
    composed, defaults = plain(compose_config([])), default_tree()
    # The defaults of supervised training are the paper's; a toy of a million parameters needs other ones.
    assert composed.pop("sft") != defaults.pop("sft")
    assert composed == defaults


@pytest.mark.parametrize("group", ["model", "data", "algorithm", "rollout", "learner", "cluster"])
def test_every_group_choice_composes(group: str) -> None:
    for choice in choices(group):
        overrides = [f"{group}={choice}"]
        if group == "data" and choice != "phantom":
            overrides += ["judge=none", "data.root=/data"]
        compose_config(overrides)


BASELINES = {
    "mrpo": ("grpo", "mrpo", 1.0),
    "mrpo_uniform": ("grpo", "mrpo", 1.0),
    "mrpo_linear": ("grpo", "mrpo", 1.0),
    "mrpo_reversed": ("grpo", "mrpo", 1.0),
    "grpo": ("grpo", "none", 1.0),
    "grpo_answer_only": ("grpo", "none", 0.0),
    "gdpo": ("gdpo", "none", 1.0),
    "pure_min": ("rloo", "pure", 1.0),
    "pure_softmax": ("rloo", "pure", 1.0),
    "process_supervision": ("grpo", "process_supervision", 1.0),
    "dr_grpo": ("dr_grpo", "none", 1.0),
    "rloo": ("rloo", "none", 1.0),
    "dapo": ("grpo", "none", 1.0),
    "gspo": ("grpo", "none", 1.0),
}


@pytest.mark.parametrize("name", choices("algorithm"))
def test_every_baseline_is_what_its_name_says(name: str) -> None:
    config = compose_config([f"algorithm={name}"])
    algorithm = config.algorithm
    assert (algorithm.advantage, algorithm.shaping, config.reward.process_weight) == BASELINES[name]
    weights = {
        "mrpo_uniform": (1.0, "exponential"),
        "mrpo_linear": (math.e, "linear"),
        "mrpo_reversed": (math.e, "reversed"),
    }
    assert (algorithm.base, algorithm.schedule) == weights.get(name, (math.e, "exponential"))
    assert algorithm.credit_temperature == (0.0 if name == "pure_min" else 0.1)
    assert config.reward.step_count_weight == (0.0 if name == "grpo_answer_only" else 1.0)


@pytest.mark.parametrize("name", choices("algorithm"))
def test_every_baseline_goes_with_every_recipe(name: str) -> None:
    config = compose_config(["experiment=internvl3", f"algorithm={name}", *NEEDS])
    assert config.algorithm.shaping == BASELINES[name][1]
    without_judge = ["experiment=vqa_rad_smoke", f"algorithm={name}", *NEEDS]
    if config.algorithm.shaping in STEP_CREDITING:
        with pytest.raises(ConfigError, match=f"shaping={config.algorithm.shaping} .* judge.kind=none; set a judge"):
            compose_config(without_judge)
    else:
        assert compose_config(without_judge).algorithm.shaping == config.algorithm.shaping


def test_overrides_reach_their_fields() -> None:
    config = compose_config(["learner.lr=1e-5", "algorithm=grpo", "++seed=3", "learner.adam_betas=[0.9,0.95]"])
    assert config.learner.lr == 1e-5
    assert config.algorithm.shaping == Shaping.NONE
    assert config.seed == 3
    assert config.learner.adam_betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.lrr=1", ["unknown setting 'learner.lrr'", "did you mean 'learner.lr'"]),
        ("+learner.lrr=1", ["unknown setting 'learner.lrr'"]),
        ("++learner.lrr=1", ["unknown setting 'learner.lrr'"]),
        ("+brand.new=1", ["unknown setting 'brand'"]),
        ("learner.lr=fast", ["learner.lr='fast'", "number"]),
        ("learner.lr=-1", ["learner.lr=-1", "greater than 0"]),
        ("algorithm.base=inf", ["algorithm.base=inf", "finite"]),
        ("algorithm.eps=inf", ["algorithm.eps=inf", "finite"]),
        ("algorithm.loss.beta=nan", ["algorithm.loss.beta=nan", "finite"]),
        ("algorithm.threshold=nan", ["algorithm.threshold=nan", "finite"]),
        ("reward.process_weight=inf", ["reward.process_weight=inf", "finite"]),
        ("judge.temperature=-1", ["judge.temperature=-1", "greater than or equal to 0"]),
        ("learner=7", ["no such learner: '7'", "small"]),
        ("experiment=phantm", ["no such experiment: 'phantm'", "did you mean 'phantom'", "vqa_rad_smoke"]),
        ("algorithm.schedule=cubic", ["algorithm.schedule='cubic'", "'exponential'", "'reversed'"]),
        ("learner.dtype=float8", ["learner.dtype='float8'", "'auto', 'float32' or 'bfloat16'"]),
        ("learner.lr", ["cannot read an override", "key=value"]),
        ("~learner.lr", ["cannot be removed"]),
        ("eval.before=perhaps", ["eval.before='perhaps'", "boolean"]),
    ],
)
def test_bad_overrides_are_named_in_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config([override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["judge=openai_compatible"], ["judge.url", "judge.model"]),
        (["data=vqa_rad", "data.root=/data"], ["judge.kind=oracle", "phantom", "judge.kind=none"]),
        (["data=vqa_rad", "judge=none"], ["data.root"]),
        (["cluster.weight_transfer=nccl"], ["weight_transfer=nccl", "shm"]),
        (["cluster.device=gpu"], ["shm", "nccl or ipc"]),
        (["rollout.max_new_tokens=300"], ["max_new_tokens=300", "max_model_len"]),
        (["rollout.max_staleness=1"], ["max_staleness=1", "set it to 0"]),
        (["reward.min_steps=11"], ["min_steps=11", "max_steps=10"]),
        (["algorithm.step_strategy=paragraph"], ["step_strategy='paragraph'", "fixed_tokens:N"]),
        (["rollout.tensor_parallel=2"], ["tensor_parallel=2", "GPUs"]),
        (["judge.oracle.error_rate=0.7", "judge.oracle.garbage_rate=0.7"], ["judge.oracle", "1.4"]),
        (["data.num_train=4"], ["data.num_train=4", "prompts_per_step=8"]),
        (["judge=none", "reward.answer.kind=judge"], ["reward.answer.kind=judge", "judge.kind=none"]),
        (["algorithm=pure_min", "reward.process_weight=0"], ["algorithm.shaping=pure", "reward.process_weight=0"]),
        (
            ["algorithm=process_supervision", "judge=none"],
            ["shaping=process_supervision", "set a judge", "shaping=none"],
        ),
        (["judge=none", "judge.noise=0.1"], ["judge.noise=0.1", "judge.noise=0"]),
        (
            ["reward.answer_weight=0", "reward.process_weight=0", "reward.step_count_weight=0"],
            ["reward.answer_weight=0", "reward.process_weight=0", "no reward", "reward.answer_weight=1"],
        ),
        (
            ["reward.answer_weight=0", "reward.step_count_weight=0", "judge=none"],
            ["reward.process_weight=1", "judge.kind=none", "no reward"],
        ),
        (["algorithm.loss.importance_cap=0.5"], ["importance_cap=0.5", "importance_cap to 1 or more"]),
        (["algorithm.loss.ratio=sequence"], ["shaping=mrpo", "ratio=sequence_token"]),
        (["algorithm=gspo", "algorithm.loss.aggregation=token_mean"], ["algorithm.loss", "sequence_mean"]),
        (["rollout.temperature=0.7"], ["rollout.temperature=1", "algorithm.loss.importance=none"]),
        (["rollout.top_p=0.9"], ["rollout.top_p=1", "algorithm.loss.importance=none"]),
        (
            ["algorithm.loss.importance=mask", "algorithm.loss.importance_floor=3"],
            ["importance_floor=3", "importance_cap=2"],
        ),
    ],
)
def test_contradictions_are_refused_with_the_remedy(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config(overrides)
    for word in words:
        assert word in str(error.value)


@pytest.fixture
def saved_run(tmp_path: Path) -> Path:
    with RunFolder.create(tmp_path, "phantom", plain(compose_config(["learner.lr=3e-4", "seed=5"]))) as run:
        return run.path


def test_what_a_run_means_may_be_said_again_as_it_is(saved_run: Path) -> None:
    again = resume_config(saved_run, ["seed=5", "data.num_train=2048", "model.path=null", "learner.lora.targets=[]"])
    assert again == resume_config(saved_run, [])


@pytest.mark.parametrize(
    "command",
    [
        ["experiment=internvl3", "cluster=2x8_gpu", "cluster.num_nodes=4", "judge=none", "data.root=/d"],
        ["experiment=phantom", "algorithm=grpo", "algorithm.base=3", "model=toy_qwen3_vl", "rollout=small", "seed=3"],
        ["model=toy_internvl", "learner=small", "judge=none", "algorithm=grpo_answer_only"],
    ],
)
def test_the_command_that_began_a_run_resumes_it(command: list[str], tmp_path: Path) -> None:
    begun = compose_config([*command, f"runs_dir={tmp_path}", "resume=auto"])
    with RunFolder.create(tmp_path, begun.experiment, plain(replace(begun, resume=None))) as run:
        pass
    again = resume_config(run.path, [*command, f"runs_dir={tmp_path}", "resume=auto"])
    assert again == replace(begun, resume=str(run.path))


def test_a_run_may_move_to_another_cluster(tmp_path: Path) -> None:
    begun = compose_config(["experiment=internvl3", "cluster=8x_gpu", "judge=none", "data.root=/d"])
    with RunFolder.create(tmp_path, begun.experiment, plain(begun)) as run:
        pass
    moved = resume_config(run.path, ["cluster=2x8_gpu"])
    assert (begun.cluster.num_nodes, moved.cluster.num_nodes, moved.learner.num_ranks) == (1, 2, 8)
    assert replace(moved.rollout, num_engines=1) == replace(begun.rollout, num_engines=1)


def test_resume_takes_the_saved_configuration_and_value_overrides(saved_run: Path) -> None:
    config = resume_config(saved_run, ["resume=x", "num_steps=400"])
    assert (config.learner.lr, config.seed, config.num_steps, config.resume) == (3e-4, 5, 400, str(saved_run))
    free = ["data.root=/moved", "judge.url=http://b/v1", "judge.model=b", "judge.concurrency=2", "eval.every_steps=7"]
    free += ["checkpoint.every_steps=3", "learner.lr=1e-5", "reward.answer.bertscore.placement=actor"]
    config = resume_config(saved_run, free)
    assert (config.data.root, config.judge.model, config.eval.every_steps) == ("/moved", "b", 7)


@pytest.mark.parametrize(
    "fixed",
    [
        "algorithm=grpo",
        "algorithm.shaping=none",
        "algorithm.loss.beta=0",
        "++algorithm.step_strategy=fixed_tokens:8",
        "reward.process_weight=0",
        "reward={process_weight: 0}",
        "reward.answer.kind=mixed",
        "judge=none",
        "judge.kind=none",
        "judge.noise=0.1",
        "seed=1",
        "data.num_train=64",
        "rollout.group_size=4",
        "rollout.max_new_tokens=64",
        "rollout.temperature=0.5",
        "model.freeze_vision_tower=true",
        "learner.lora.r=8",
    ],
)
def test_what_a_run_means_cannot_change_on_resume(fixed: str, saved_run: Path) -> None:
    with pytest.raises(ConfigError, match="cannot change when a run is resumed; start a new run for it"):
        resume_config(saved_run, [fixed])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.lrr=1", "unknown setting 'learner.lrr'"),
        ("learner.lr=1,2", "expected one value (a list is written"),
        ("algorithm.base=1,2", "expected one value (a list is written"),
        ("~algorithm.base", "settings cannot be removed; give algorithm.base a value"),
        ("learner.lr=${nothing.there}", "do not compose: Interpolation key"),
        ("seed.deeper=1", "seed.deeper=1 cannot change"),
        ("num_steps.deeper=1", "num_steps"),
    ],
)
def test_a_bad_override_of_a_resumed_run_is_one_line(override: str, words: str, saved_run: Path) -> None:
    with pytest.raises(ConfigError) as error:
        resume_config(saved_run, [override])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_resumed_is_refused_before_anything_else(saved_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        resume_config(tmp_path / "nowhere", [])
    state = json.loads((saved_run / "state.json").read_text())
    (saved_run / "state.json").write_text(json.dumps({**state, "format": 1}))
    with pytest.raises(DataError, match=r"was written by an earlier version of mrpo .*; start a new run, or resume it"):
        resume_config(saved_run, [])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.set=a,b", r"data\.set=\[a,b\]"),
        ("~data.set", "cannot be removed"),
        ("data.set=${x}", "do not compose: Interpolation key 'x'"),
    ],
)
def test_settings_without_files_are_read_as_strictly(override: str, words: str) -> None:
    assert settings_tree(["data.set=a", "++data.max_rows=3"]) == {"data": {"set": "a", "max_rows": 3}}
    with pytest.raises(ConfigError, match=words):
        settings_tree([override])


def test_plain_data_builds_the_same_configuration_again() -> None:
    config = compose_config(["judge.kind=none", "algorithm.base=2"])
    assert build_config(plain(config)) == config
    assert config.judge.kind == JudgeKind.NONE
    assert isinstance(config, Config)


def test_importing_the_configuration_loads_nothing_heavy() -> None:
    code = "import sys, mrpo.config; sys.exit(int(any(m in sys.modules for m in ('torch', 'ray', 'vllm', 'hydra'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
