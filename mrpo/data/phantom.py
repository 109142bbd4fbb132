"""The phantom data set on disk: drawn once for a seed and its settings, then read like any other JSONL set."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path

import numpy as np

from mrpo.cache import cached_folder
from mrpo.data.jsonl import write_jsonl
from mrpo.phantom import language, world
from mrpo.types import Example

SPLITS = {"warm": 0, "train": 1, "test": 2}  # disjoint seed streams


def phantom_examples(split: str, count: int, *, seed: int, noise: float, images: Path) -> list[Example]:
    """Draw `count` scans of a split into `images` and return their questions with gold rationales."""
    kinds = list(language.QuestionKind)
    examples: list[Example] = []
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS[split], index])
        scene = world.draw_scene(rng)
        kind = kinds[rng.integers(len(kinds))]
        file = images / f"{split}-{index:05d}.png"
        world.render(scene, rng, noise=noise).save(file, compress_level=1)
        belief = language.belief_of(scene)
        examples.append(
            Example(
                id=f"phantom-{split}-{index:05d}",
                image=str(file),
                question=kind.value,
                answer=language.write_answer(kind, belief),
                rationale=" ".join(language.write_steps(belief)),
                dataset="phantom",
                split=split,
                license="generated",
            )
        )
    return examples


def world_fingerprint() -> str:
    """Hash of the code that decides what a phantom looks like and says, so that a change of it makes new data."""
    source = inspect.getsource(world) + inspect.getsource(language) + inspect.getsource(phantom_examples)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def ensure_phantom(cache: Path, *, counts: dict[str, int], seed: int, noise: float) -> Path:
    """The folder `phantom-<hash>` with `<split>.jsonl` and images, drawn unless it is there.

    Args:
        cache: parent folder, created if missing.
        counts: scans per split of `SPLITS`.
        seed: of the generator.
        noise: see `world.render`.
    """
    key = json.dumps({"counts": counts, "seed": seed, "noise": noise, "world": world_fingerprint()}, sort_keys=True)
    folder = cache / f"phantom-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def build(building: Path) -> None:
        (building / "images").mkdir()
        for split, count in counts.items():
            examples = phantom_examples(split, count, seed=seed, noise=noise, images=building / "images")
            write_jsonl(examples, building / f"{split}.jsonl", root=building)

    return cached_folder(folder, build)
