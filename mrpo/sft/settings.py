"""What a supervised run makes of the settings: those of training that it does not use must not get in its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrpo.choices import AnswerKind, DataKind, JudgeKind, Shaping
from mrpo.config import Config
from mrpo.errors import ConfigError
from mrpo.run_reading import read_state

SUFFIX = "_sft"  # of the experiment, and so of the folder its runs lie in
DEFAULTS = (
    "eval.before=false",
)  # engines are started for an evaluation alone, so one is made unless two are asked for


def supervised(config: Config) -> Config:
    """The configuration of a supervised run; settings that only reinforcement reads are set to what needs nothing.

    No judge is demanded where none is asked: without an evaluation, or with one of answers alone.

    Raises:
        ConfigError: data without rationales, or an evaluation that a supervised run does not make.
    """
    if config.data.kind == DataKind.VQA_RAD:
        raise ConfigError(
            f"data.kind={config.data.kind} carries no gold rationales, and supervised training learns from nothing "
            "else; set data=jsonl data.root=<folder> with rationales (docs/data.md), or EXP=phantom"
        )
    if config.eval.every_steps:
        raise ConfigError(
            f"eval.every_steps={config.eval.every_steps}: supervised training evaluates before and after, and measures "
            "the held-out loss after every epoch; set it to 0"
        )
    if not config.experiment.endswith(SUFFIX):
        config = replace(config, experiment=config.experiment + SUFFIX)
    if not is_evaluated(config):
        answer = replace(config.reward.answer, kind=AnswerKind.EXACT)
        config = replace(config, reward=replace(config.reward, answer=answer))
    by_judge = config.reward.answer.kind == AnswerKind.JUDGE
    if not (is_evaluated(config) and (config.eval.judge or by_judge)):
        config = replace(config, judge=replace(config.judge, kind=JudgeKind.NONE, noise=0.0))
    return replace(
        config,
        algorithm=replace(config.algorithm, shaping=Shaping.NONE),
        rollout=replace(config.rollout, prompts_per_step=1),
    )


def is_evaluated(config: Config) -> bool:
    """Whether engines are started at all."""
    return config.eval.before or config.eval.after


def require_supervised(run: Path) -> None:
    """Refuse to go on with a run of reinforcement.

    Raises:
        ConfigError: `run` is of another command.
        DataError: it is no run folder.
    """
    if not read_state(run).experiment.endswith(SUFFIX):
        raise ConfigError(f"resume={run} is no supervised run; go on with: make train ARGS=resume={run}")


def require_reinforcement(config: Config) -> None:
    """Refuse to go on with a supervised run.

    Raises:
        ConfigError: `config` is of another command's run.
    """
    if config.experiment.endswith(SUFFIX):
        raise ConfigError(
            f"resume={config.resume} is a supervised run; go on with: make sft ARGS=resume={config.resume}, or start "
            f"from its model with model.path={config.resume}/checkpoints/step_N/hf"
        )
