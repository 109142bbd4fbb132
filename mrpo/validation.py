"""From a composed tree to a checked `Config`: unknown keys, wrong types and contradictions end here, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import ValidationError

from mrpo.choices import (
    STEP_CREDITING,
    AnswerKind,
    DataKind,
    Device,
    Importance,
    JudgeKind,
    Placement,
    Ratio,
    Shaping,
    WeightTransfer,
)
from mrpo.config import Config, JudgeConfig
from mrpo.errors import ConfigError
from mrpo.families import family_of
from mrpo.folder_name import require_folder_name
from mrpo.images import require_tiles
from mrpo.judge_endpoints import endpoints_of
from mrpo.judge_prices import require_prices
from mrpo.placement import placement_of

Settings = TypeVar("Settings")


def build_config(tree: Mapping[str, Any], *, adjust: Callable[[Config], Config] | None = None) -> Config:
    """Turn a composed tree into a checked `Config`.

    Args:
        tree: as composed.
        adjust: what a command makes of the settings before they are held against each other.

    Raises:
        ConfigError: unknown key, wrong type or contradiction; one line with field, value and remedy.
    """
    config = build(Config, tree)
    if adjust is not None:
        config = adjust(config)
    check_contradictions(config)
    return config


def build(settings: type[Settings], tree: Mapping[str, Any]) -> Settings:
    """Turn a tree into a configuration dataclass, each field checked by itself.

    Raises:
        ConfigError: unknown key or wrong type; one line with field, value and remedy.
    """
    try:
        return settings(**tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item, settings) for item in error.errors())) from None


def _explain(item: Any, settings: type) -> str:
    """One pydantic finding in a user's words."""
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(path, _all_paths(settings), n=1, cutoff=0.5)
        where = f"did you mean {near[0]!r}?" if near else f"see {settings.__module__.replace('.', '/')}.py"
        return f"unknown setting {path!r}; {where}"
    if item["type"] == "value_error":
        return f"{path}: {item['ctx']['error']}"  # settings of one section that contradict each other
    return f"{path}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _all_paths(cls: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(cls)
    paths: list[str] = []
    for item in fields(cls):
        paths.append(prefix + item.name)
        if is_dataclass(hints[item.name]):
            paths += _all_paths(hints[item.name], f"{prefix}{item.name}.")
    return paths


def check_contradictions(config: Config) -> None:
    """Refuse settings that are fine one by one and wrong together.

    Raises:
        ConfigError: the first contradiction found.
    """
    rollout, judge, cluster, data = config.rollout, config.judge, config.cluster, config.data
    algorithm = config.algorithm
    _check_names(config)
    _check_endpoints(judge)
    _check_own_judge(judge, cluster.device)
    require_prices(judge)
    if judge.kind == JudgeKind.ORACLE and data.kind != DataKind.PHANTOM:
        raise ConfigError(
            f"judge.kind=oracle rules on phantom data only, but data.kind={data.kind}; set "
            "judge.kind=openai_compatible or judge.kind=none (judge.kind=lexical, which is weak, for a smoke test)"
        )
    if config.reward.answer.kind == AnswerKind.JUDGE and judge.kind == JudgeKind.NONE:
        raise ConfigError(
            "reward.answer.kind=judge needs a judge, but judge.kind=none; set reward.answer.kind=mixed, or a judge"
        )
    _check_rewards(config)
    if judge.noise > 0 and judge.kind == JudgeKind.NONE:
        raise ConfigError(
            f"judge.noise={judge.noise:g} flips verdicts, but judge.kind=none gives none; set judge.noise=0, or a judge"
        )
    if algorithm.shaping in STEP_CREDITING and judge.kind == JudgeKind.NONE:
        raise ConfigError(
            f"algorithm.shaping={algorithm.shaping} gives tokens the verdicts on their steps, but judge.kind=none; "
            "set a judge, or algorithm.shaping=none"
        )
    if algorithm.shaping in STEP_CREDITING and config.reward.process_weight == 0:
        raise ConfigError(
            f"algorithm.shaping={algorithm.shaping} gives the process reward to tokens, but reward.process_weight=0; "
            "set a weight, or algorithm.shaping=none"
        )
    if algorithm.loss.ratio == Ratio.SEQUENCE and algorithm.shaping != Shaping.NONE:
        raise ConfigError(
            f"algorithm.loss.ratio=sequence averages the token advantages of algorithm.shaping={algorithm.shaping} "
            "away; set algorithm.loss.ratio=sequence_token, or algorithm.shaping=none"
        )
    sampled_otherwise = rollout.temperature != 1.0 or rollout.top_p != 1.0
    if algorithm.loss.importance != Importance.NONE and sampled_otherwise:
        raise ConfigError(
            f"algorithm.loss.importance={algorithm.loss.importance} compares raw log-probs, which need "
            f"rollout.temperature=1 and rollout.top_p=1, got {rollout.temperature:g} and {rollout.top_p:g}; "
            "set algorithm.loss.importance=none"
        )
    if data.kind != DataKind.PHANTOM and not data.root:
        raise ConfigError(f"data.kind={data.kind} needs data.root=<folder with the data set>")
    if cluster.device == Device.CPU and cluster.weight_transfer != WeightTransfer.SHM:
        raise ConfigError(
            f"cluster.weight_transfer={cluster.weight_transfer} needs GPUs; with cluster.device=cpu use shm"
        )
    if cluster.device == Device.GPU and cluster.weight_transfer == WeightTransfer.SHM:
        raise ConfigError("cluster.weight_transfer=shm is for CPU engines; with cluster.device=gpu use nccl or ipc")
    _check_engines(config)
    _check_placement(config)
    if rollout.max_new_tokens >= rollout.max_model_len:
        raise ConfigError(
            f"rollout.max_new_tokens={rollout.max_new_tokens} leaves no room for a prompt in "
            f"rollout.max_model_len={rollout.max_model_len}; raise max_model_len"
        )
    if rollout.max_staleness > 0:
        raise ConfigError(
            f"rollout.max_staleness={rollout.max_staleness}: only 0 (strictly on-policy) is implemented; set it to 0"
        )
    family = config.model.toy_family if config.model.path is None else config.model.family
    if family is not None:
        require_tiles(family_of(family.value), config.model.max_tiles)
    if config.reward.min_steps > config.reward.max_steps:
        raise ConfigError(
            f"reward.min_steps={config.reward.min_steps} is above reward.max_steps={config.reward.max_steps}"
        )
    if not re.fullmatch(r"sentence|fixed_tokens:[1-9]\d*", algorithm.step_strategy):
        raise ConfigError(
            f"algorithm.step_strategy={algorithm.step_strategy!r} is unknown; use 'sentence' or 'fixed_tokens:N'"
        )
    if rollout.tensor_parallel > 1 and cluster.device == Device.CPU:
        raise ConfigError(
            f"rollout.tensor_parallel={rollout.tensor_parallel} needs GPUs; with cluster.device=cpu set it to 1 "
            "and raise rollout.num_engines instead"
        )
    faults = judge.oracle.error_rate + judge.oracle.rate_limit_rate + judge.oracle.garbage_rate
    if faults > 1.0:
        raise ConfigError(f"judge.oracle: error_rate, rate_limit_rate and garbage_rate add up to {faults:g}, above 1")
    if data.num_train is not None and data.num_train < rollout.prompts_per_step:
        raise ConfigError(
            f"data.num_train={data.num_train} is less than rollout.prompts_per_step={rollout.prompts_per_step}"
        )


def _check_names(config: Config) -> None:
    """Refuse names of folders that are paths, or none."""
    require_folder_name("experiment", config.experiment)
    if config.run_name is not None:
        require_folder_name("run_name", config.run_name)


def _check_endpoints(judge: JudgeConfig) -> None:
    """Refuse endpoints where none can be, and their absence where one must be."""
    for name in (judge.api_key_env, *(endpoint.api_key_env for endpoint in judge.endpoints)):
        if name is not None and not (name.isascii() and name.isidentifier()):
            # Not quoted: it may be the key itself, and the configuration is written into the run folder.
            raise ConfigError(
                "judge.api_key_env is not the name of an environment variable; keep the key itself out of the command "
                "and of every file of the run: export MRPO_JUDGE_API_KEY=<key>, or name a file in judge.api_key_file"
            )
    if judge.kind == JudgeKind.OPENAI_COMPATIBLE:
        endpoints_of(judge)
    elif judge.kind == JudgeKind.VLLM and (judge.url or judge.model):
        raise ConfigError(
            f"judge.kind=vllm starts its own servers, but judge.url={judge.url!r} and judge.model={judge.model!r} name "
            "one; leave them out and set judge.vllm.model, or set judge.kind=openai_compatible"
        )
    elif judge.endpoints:
        raise ConfigError(
            f"judge.endpoints is for judge.kind=openai_compatible, but judge.kind={judge.kind}; set that, or leave "
            "judge.endpoints out"
        )


def _check_own_judge(judge: JudgeConfig, device: Device) -> None:
    """Refuse a judge of the run's own that cannot be started or that no reply fits into."""
    own = judge.vllm
    if judge.kind != JudgeKind.VLLM:
        return
    if own.model is None:
        raise ConfigError("judge.kind=vllm needs judge.vllm.model=<folder of a checkpoint, or hub id>")
    if device == Device.CPU and own.tensor_parallel > 1:
        raise ConfigError(
            f"judge.vllm.tensor_parallel={own.tensor_parallel} needs GPUs; with cluster.device=cpu set it to 1"
        )
    if judge.max_completion_tokens >= own.max_model_len:
        raise ConfigError(
            f"judge.max_completion_tokens={judge.max_completion_tokens} leaves no room for a prompt in "
            f"judge.vllm.max_model_len={own.max_model_len}; raise max_model_len or lower max_completion_tokens"
        )


def _check_rewards(config: Config) -> None:
    """Refuse rewards that are 0 for every completion."""
    reward, judge = config.reward, config.judge.kind
    earns_by_steps = reward.process_weight > 0 and judge != JudgeKind.NONE
    if not (reward.answer_weight > 0 or reward.step_count_weight > 0 or earns_by_steps):
        raise ConfigError(
            f"reward.answer_weight=0, reward.step_count_weight=0 and reward.process_weight={reward.process_weight:g} "
            f"with judge.kind={judge} leave no reward to learn from; set a weight, e.g. reward.answer_weight=1"
        )


def _check_engines(config: Config) -> None:
    """Refuse numbers of engines that contradict each other, and engines that come and go where each has its seat."""
    rollout = config.rollout
    if not rollout.engines_to_begin <= rollout.num_engines <= rollout.engines_at_most:
        raise ConfigError(
            f"rollout.min_engines={rollout.engines_to_begin}, num_engines={rollout.num_engines} and max_engines="
            f"{rollout.engines_at_most} must not fall; set min_engines <= num_engines <= max_engines"
        )
    is_elastic = rollout.engines_to_begin < rollout.engines_at_most or rollout.resources
    if config.cluster.placement == Placement.COLOCATED and is_elastic:
        raise ConfigError(
            "rollout.min_engines, max_engines and resources let engines come and go, but cluster.placement=colocated "
            "gives each the GPUs of its learner ranks; leave them out, or set cluster.placement=split"
        )


def _check_placement(config: Config) -> None:
    """Refuse engines and ranks that cannot sit where `cluster` puts them."""
    cluster, num_ranks = config.cluster, config.learner.num_ranks
    num_engines, tensor_parallel = config.rollout.num_engines, config.rollout.tensor_parallel
    colocated = cluster.placement == Placement.COLOCATED
    if cluster.device == Device.CPU:
        if colocated:
            raise ConfigError(
                "cluster.placement=colocated needs GPUs: on a CPU an engine's sleep frees nothing; "
                "with cluster.device=cpu set cluster.placement=split"
            )
        return
    if colocated and cluster.weight_transfer != WeightTransfer.IPC:
        raise ConfigError(
            f"cluster.placement=colocated shares GPUs, where NCCL takes no two ranks, but cluster.weight_transfer="
            f"{cluster.weight_transfer}; set cluster.weight_transfer=ipc"
        )
    if not colocated and cluster.weight_transfer == WeightTransfer.IPC:
        raise ConfigError(
            "cluster.weight_transfer=ipc passes weights within a GPU, but cluster.placement=split gives engines and "
            "learner GPUs of their own; set cluster.weight_transfer=nccl, or cluster.placement=colocated"
        )
    if colocated and num_engines * tensor_parallel != num_ranks:
        raise ConfigError(
            f"cluster.placement=colocated puts a learner rank beside every engine rank, but rollout.num_engines="
            f"{num_engines} × rollout.tensor_parallel={tensor_parallel} = {num_engines * tensor_parallel} and "
            f"learner.num_ranks={num_ranks}; make them equal"
        )
    if cluster.num_nodes > 1 and cluster.address is None:
        raise ConfigError(
            f"cluster.num_nodes={cluster.num_nodes} needs a Ray cluster of them, and cluster.address=null starts Ray "
            "on this machine alone; set cluster.address=auto, or the cluster's address"
        )
    placement_of(config)
