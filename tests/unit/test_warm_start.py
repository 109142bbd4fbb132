"""The phantom policy's start: demonstrations that err as often as they should, and a cache that knows what it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrpo.config import Config, ErrorRatesConfig
from mrpo.data import phantom
from mrpo.families import FAMILIES
from mrpo.phantom import toy_models, warm_start
from mrpo.phantom.demonstrations import PRIOR, mislead
from mrpo.phantom.language import Belief, QuestionKind, read_rationale, write_answer, write_completion, write_steps
from mrpo.phantom.warm_start import demonstrations_of, prepare_toy_policy, tokenizer_corpus
from mrpo.steps import extract_answer, split_steps
from mrpo.types import Example, SftSample
from tests.unit.fakes import TRUTH, phantom_example

ATTRIBUTES = ("modality", "organ", "side", "half", "num_lesions")
# Shares no value with the prior.
FAR = Belief(modality="ultrasound", organ="brain", side="right", half="lower", num_lesions=3, marker=True)
EXAMPLES = [
    phantom_example(number, kind=kind, truth=truth)
    for number, (kind, truth) in enumerate((kind, truth) for kind in QuestionKind for truth in (TRUTH, FAR, PRIOR))
]


def belief_told(target: str, tag: str = "think") -> Belief:
    """What a demonstration holds to be true."""
    return read_rationale(" ".join(step.text for step in split_steps(target, think_tag=tag)))


# Demonstrations


def test_the_prior_is_the_first_value_of_everything() -> None:
    assert Belief(modality="CT", organ="liver", side="left", half="upper", num_lesions=1, marker=False) == PRIOR


def rates(rate: float) -> ErrorRatesConfig:
    """The same chance for every attribute."""
    return ErrorRatesConfig(**dict.fromkeys(ATTRIBUTES, rate))


def test_every_attribute_but_the_marker_has_a_rate() -> None:
    assert tuple(item.name for item in fields(ErrorRatesConfig)) == ATTRIBUTES
    assert {item.name for item in fields(Belief)} == {*ATTRIBUTES, "marker"}


@pytest.mark.parametrize("shares", [(0.0, 0.2, 0.5, 0.8, 1.0), (1.0, 0.0, 0.3, 0.6, 0.1)])
def test_each_attribute_errs_towards_the_prior_as_often_as_asked(shares: tuple[float, ...]) -> None:
    rng, num_draws = np.random.default_rng(0), 4000
    asked = ErrorRatesConfig(**dict(zip(ATTRIBUTES, shares, strict=True)))
    told = [mislead(FAR, rng, asked) for _ in range(num_draws)]
    for name, share in zip(ATTRIBUTES, shares, strict=True):
        values = Counter(getattr(belief, name) for belief in told)
        assert set(values) <= {getattr(FAR, name), getattr(PRIOR, name)}
        spread = (num_draws * share * (1 - share)) ** 0.5
        assert abs(values[getattr(PRIOR, name)] - num_draws * share) <= 5 * spread, name


def test_attributes_err_independently() -> None:
    rng, num_draws = np.random.default_rng(1), 6400
    told = [mislead(FAR, rng, rates(0.5)) for _ in range(num_draws)]
    patterns = Counter(tuple(getattr(belief, name) == getattr(PRIOR, name) for name in ATTRIBUTES) for belief in told)
    assert len(patterns) == 32
    expected = num_draws / 32
    chi_square = sum((count - expected) ** 2 / expected for count in patterns.values())
    assert chi_square < 31 + 5 * (2 * 31) ** 0.5  # mean 31, variance 2 × 31


@pytest.mark.parametrize("marker", [True, False])
def test_the_marker_is_always_told_truly(marker: bool) -> None:
    rng = np.random.default_rng(2)
    truth = replace(FAR, marker=marker)
    assert {mislead(truth, rng, rates(1.0)).marker for _ in range(20)} == {marker}


def test_a_demonstration_is_consistent_with_its_own_errors() -> None:
    """Trace and answer follow from one belief, wrong as it may be."""
    for example, sample in zip(EXAMPLES, demonstrations(0.5), strict=True):
        told, kind = belief_told(sample.target), QuestionKind(example.question)
        assert sample.target == write_completion(kind, told, "think")
        assert extract_answer(sample.target) == write_answer(kind, told)
        assert (sample.image, sample.question) == (example.image, example.question)


def demonstrations(rate: float | None, *, seed: int = 0, tag: str = "think") -> list[SftSample]:
    error_rates = None if rate is None else rates(rate)
    return demonstrations_of(EXAMPLES, think_tag=tag, error_rates=error_rates, seed=seed)


@pytest.mark.parametrize("rate", [None, 0.0])
def test_without_errors_demonstrations_tell_the_truth(rate: float | None) -> None:
    assert [belief_told(sample.target) for sample in demonstrations(rate)] == [
        read_rationale(example.rationale or "") for example in EXAMPLES
    ]


def test_an_error_rate_of_one_tells_the_prior() -> None:
    assert [replace(belief_told(sample.target), marker=False) for sample in demonstrations(1.0)] == [PRIOR] * len(
        EXAMPLES
    )


def test_demonstrations_follow_from_the_seed() -> None:
    assert demonstrations(0.5) == demonstrations(0.5)
    assert demonstrations(0.5) != demonstrations(0.5, seed=1)


def test_demonstrations_of_the_same_scan_err_differently() -> None:
    samples = demonstrations_of([EXAMPLES[1]] * 40, think_tag="think", error_rates=rates(0.5), seed=0)
    assert len({sample.target for sample in samples}) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_demonstrations_speak_the_familys_tag(family: str) -> None:
    tag = FAMILIES[family].think_tag
    for sample in demonstrations(0.5, tag=tag):
        assert sample.target.startswith(f"<{tag}>The modality is ")
        assert len(split_steps(sample.target, think_tag=tag)) in (6, 7)


def test_the_tokenizer_learns_from_questions_and_true_completions() -> None:
    corpus = tokenizer_corpus(EXAMPLES, "thinking")
    assert corpus[: len(EXAMPLES)] == [example.question for example in EXAMPLES]
    for example, text in zip(EXAMPLES, corpus[len(EXAMPLES) :], strict=True):
        truth = read_rationale(example.rationale or "")
        assert text == f"<thinking>{' '.join(write_steps(truth))}</thinking><answer>{example.answer}</answer>"


def test_only_phantoms_can_be_demonstrated() -> None:
    with pytest.raises(AssertionError, match="q007 is no phantom"):
        demonstrations_of([phantom_example(7, rationale=False)], think_tag="think", error_rates=rates(0.5), seed=0)


# The toy's cache


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for building a toy, which takes seconds and torch; keeps what each was built from."""
    calls: list[dict[str, Any]] = []

    def build(family: str, folder: Path, *, corpus: Sequence[str], seed: int) -> None:
        calls.append({"family": family, "corpus": list(corpus), "seed": seed})
        (folder / "config.json").write_text(json.dumps({"model_type": family}))

    source = warm_start._hash_of(toy_models)
    real_hash = warm_start._hash_of
    monkeypatch.setattr(toy_models, "build_toy_model", build)
    monkeypatch.setattr(warm_start, "_hash_of", lambda module: source if module is toy_models else real_hash(module))
    return calls


def config_of(cache: Path, **sections: Any) -> Config:
    config = Config(cache_dir=str(cache))
    changes = {
        name: replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return replace(config, **changes)


def test_a_toy_is_built_once_and_is_cold_until_its_warm_folder_exists(
    tmp_path: Path, builds: list[dict[str, Any]]
) -> None:
    config = config_of(tmp_path / "cache")
    cold = prepare_toy_policy(config, EXAMPLES)
    assert not cold.is_warm
    assert (cold.folder / "config.json").is_file()
    assert not cold.warm_folder.exists()
    assert cold.folder.parent == cold.warm_folder.parent == tmp_path / "cache"
    assert prepare_toy_policy(config, EXAMPLES) == cold
    assert builds == [{"family": "qwen2_5_vl", "corpus": tokenizer_corpus(EXAMPLES, "think"), "seed": 0}]

    cold.warm_folder.mkdir()
    warm = prepare_toy_policy(config, EXAMPLES)
    assert warm.is_warm
    assert warm.folder == warm.warm_folder == cold.warm_folder
    assert len(builds) == 1


def test_a_warm_toy_needs_no_cold_one(tmp_path: Path, builds: list[dict[str, Any]]) -> None:
    config = config_of(tmp_path)
    cold = prepare_toy_policy(config, EXAMPLES)
    cold.warm_folder.mkdir()
    (cold.folder / "config.json").unlink()
    cold.folder.rmdir()
    assert prepare_toy_policy(config, EXAMPLES).is_warm
    assert len(builds) == 1


def test_each_family_gets_its_own_tag(tmp_path: Path, builds: list[dict[str, Any]]) -> None:
    for family in FAMILIES:
        prepare_toy_policy(config_of(tmp_path, model={"toy_family": family}), EXAMPLES)
    for build in builds:
        tag = FAMILIES[build["family"]].think_tag
        assert build["corpus"][-1].startswith(f"<{tag}>")
    assert [build["family"] for build in builds] == list(FAMILIES)


def names(config: Config, examples: Sequence[Example] = EXAMPLES) -> tuple[str, str]:
    toy = prepare_toy_policy(config, examples)
    return toy.folder.name, toy.warm_folder.name


BOTH = [
    {"seed": 1},
    {"data": {"seed": 1}},
    {"model": {"toy_family": "qwen3_vl"}},
]
WARM_ONLY: list[dict[str, Any]] = [
    {"data": {"noise": 0.01}},
    {"model": {"terse_prompt": False}},
    {"model": {"freeze_vision_tower": True}},
    {"model": {"max_pixels": 784}},
    {"learner": {"weight_decay": 0.1}},
    {"learner": {"max_grad_norm": 0.5}},
    {"learner": {"dtype": "bfloat16"}},
    *(
        {"warm_start": change}
        for change in (
            {"batch_size": 8},
            {"true_steps": 1},
            {"true_lr": 1e-4},
            {"faulty_steps": 1},
            {"faulty_lr": 1e-4},
            {"error_rates": ErrorRatesConfig(half=0.4)},
        )
    ),
]
NEITHER: list[dict[str, Any]] = [
    {"num_steps": 3},
    {"learner": {"lr": 1e-6}},
    {"learner": {"zero_stage": 3}},
    {"algorithm": {"base": 1.0}},
    {"rollout": {"group_size": 4}},
    {"data": {"num_train": 64}},
]


def changed(cache: Path, change: dict[str, Any]) -> Config:
    if "warm_start" not in change:
        return config_of(cache, **change)
    config = config_of(cache)
    warm = replace(config.model.warm_start, **change["warm_start"])
    return replace(config, model=replace(config.model, warm_start=warm))


@pytest.mark.parametrize("change", BOTH, ids=str)
def test_what_decides_the_random_toy_renames_both(
    tmp_path: Path, builds: list[dict[str, Any]], change: dict[str, Any]
) -> None:
    cold, warm = names(config_of(tmp_path))
    other_cold, other_warm = names(changed(tmp_path, change))
    assert other_cold != cold and other_warm != warm
    assert len(builds) == 2


@pytest.mark.parametrize("change", WARM_ONLY, ids=str)
def test_what_decides_the_warm_start_alone_keeps_the_random_toy(
    tmp_path: Path, builds: list[dict[str, Any]], change: dict[str, Any]
) -> None:
    cold, warm = names(config_of(tmp_path))
    other_cold, other_warm = names(changed(tmp_path, change))
    assert other_cold == cold and other_warm != warm
    assert len(builds) == 1


@pytest.mark.parametrize("change", NEITHER, ids=str)
def test_what_only_training_sees_changes_nothing(
    tmp_path: Path, builds: list[dict[str, Any]], change: dict[str, Any]
) -> None:
    assert names(config_of(tmp_path)) == names(changed(tmp_path, change))


def test_another_number_of_scans_is_another_toy(tmp_path: Path, builds: list[dict[str, Any]]) -> None:
    assert set(names(config_of(tmp_path))).isdisjoint(names(config_of(tmp_path), EXAMPLES[:5]))


@pytest.mark.parametrize("what", ["world", "demonstrations", "prompts"])
def test_other_code_is_another_toy(
    tmp_path: Path, builds: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    cold, warm = names(config_of(tmp_path))
    if what == "world":
        monkeypatch.setattr(warm_start, "world_fingerprint", lambda: "another world")
    else:
        hash_of: Callable[[object], str] = warm_start._hash_of
        module = getattr(warm_start, what)
        monkeypatch.setattr(warm_start, "_hash_of", lambda other: "x" if other is module else hash_of(other))
    other_cold, other_warm = names(config_of(tmp_path))
    assert (other_cold != cold) == (what == "world")
    assert other_warm != warm


def test_the_worlds_hash_follows_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = phantom.world_fingerprint()
    assert before == phantom.world_fingerprint()
    monkeypatch.setattr(phantom, "world", warm_start)
    assert phantom.world_fingerprint() != before
