"""The phantom policy before reinforcement: a toy model, and the faulty demonstrations it starts from."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mrpo import prompts
from mrpo.cache import cached_folder
from mrpo.config import Config, ErrorRatesConfig, LearnerConfig, plain
from mrpo.data.phantom import world_fingerprint
from mrpo.families import family_of
from mrpo.phantom import demonstrations, toy_models
from mrpo.phantom.language import QuestionKind, read_rationale, write_completion
from mrpo.types import Example, SftSample


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyPolicy:
    """Where the policy of a run without a checkpoint comes from."""

    folder: Path  # the Hugging Face folder to load now
    warm_folder: Path  # where the warm-started model belongs

    @property
    def is_warm(self) -> bool:
        """Whether the warm start was done by an earlier run."""
        return self.folder == self.warm_folder


def prepare_toy_policy(config: Config, warm_examples: Sequence[Example]) -> ToyPolicy:
    """The warm-started toy from the cache, or a random one that still needs its warm start.

    Both are cached under `config.cache_dir` by a hash of all that decides them: family, seed, data, warm-start and
    optimizer settings, and the code of the world, the prompts, the demonstrations and the toy.
    """
    cache = Path(config.cache_dir).expanduser()
    family = config.model.toy_family.value
    built_of = {"family": family, "seed": config.seed, "world": world_fingerprint(), "code": _hash_of(toy_models)}
    built_of |= {"data_seed": config.data.seed, "num_scans": len(warm_examples)}
    random_folder = cache / f"toy-{family}-{_digest(built_of)}"
    warmed_by = built_of | {"demos": _hash_of(demonstrations), "prompts": _hash_of(prompts)}
    warmed_by |= {"model": plain(config.model), "optimizer": _optimizer_of(config.learner), "noise": config.data.noise}
    warm_folder = cache / f"warm-{family}-{_digest(warmed_by)}"
    if warm_folder.is_dir():
        return ToyPolicy(folder=warm_folder, warm_folder=warm_folder)

    def build(building: Path) -> None:
        corpus = tokenizer_corpus(warm_examples, family_of(family).think_tag)
        toy_models.build_toy_model(family, building, corpus=corpus, seed=config.seed)

    cached_folder(random_folder, build)
    return ToyPolicy(folder=random_folder, warm_folder=warm_folder)


class WarmLearner(Protocol):
    """Who learns from the demonstrations."""

    async def warm_start(
        self, examples: Sequence[SftSample], *, num_steps: int, batch_size: int, lr: float, seed: int
    ) -> list[float]:
        """Steps on demonstrations; returns the loss of every step."""
        ...

    async def save(self, folder: str) -> None:
        """Write `hf/` into an existing folder."""
        ...


async def warm_start(config: Config, learner: WarmLearner, toy: ToyPolicy, examples: Sequence[Example]) -> None:
    """Show true demonstrations, then faulty ones, and put the model where later runs find it."""
    warm = config.model.warm_start
    think_tag = family_of(config.model.toy_family.value).think_tag
    for error_rates, num_steps, lr in (
        (None, warm.true_steps, warm.true_lr),
        (warm.error_rates, warm.faulty_steps, warm.faulty_lr),
    ):
        if num_steps:
            samples = demonstrations_of(examples, think_tag=think_tag, error_rates=error_rates, seed=config.seed)
            await learner.warm_start(samples, num_steps=num_steps, batch_size=warm.batch_size, lr=lr, seed=config.seed)
    with tempfile.TemporaryDirectory(prefix=".warm-", dir=toy.warm_folder.parent) as folder:
        await learner.save(folder)
        cached_folder(toy.warm_folder, lambda target: os.rename(Path(folder) / "hf", target))


def tokenizer_corpus(examples: Sequence[Example], think_tag: str) -> list[str]:
    """What the toy's tokenizer is trained on: questions and true completions."""
    true = demonstrations_of(examples, think_tag=think_tag, error_rates=None, seed=0)
    return [example.question for example in examples] + [sample.target for sample in true]


def demonstrations_of(
    examples: Sequence[Example], *, think_tag: str, error_rates: ErrorRatesConfig | None, seed: int
) -> list[SftSample]:
    """One demonstration for every scan: faulty at the given rates, or true where they are None."""
    rng = np.random.default_rng([seed, 3])
    samples: list[SftSample] = []
    for example in examples:
        assert example.rationale is not None, f"{example.id} is no phantom"
        belief = read_rationale(example.rationale)
        if error_rates is not None:
            belief = demonstrations.mislead(belief, rng, error_rates)
        target = write_completion(QuestionKind(example.question), belief, think_tag)
        samples.append(SftSample(image=example.image, question=example.question, target=target))
    return samples


def _optimizer_of(learner: LearnerConfig) -> dict[str, object]:
    """The learner's settings that decide the outcome of a warm start; its learning rates are its own."""
    return {
        "dtype": learner.dtype,
        "weight_decay": learner.weight_decay,
        "adam_betas": learner.adam_betas,
        "adam_eps": learner.adam_eps,
        "max_grad_norm": learner.max_grad_norm,
    }


def _hash_of(module: object) -> str:
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]  # type: ignore[arg-type]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
