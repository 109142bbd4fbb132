"""States of the random number generators a rank draws from, as tensors.

A checkpoint holds those of rank 0, and every rank takes them: nothing that a step draws depends on them. What dropout
draws is seeded anew each step, from seed, step and rank (`learner.lora.seed_dropout`); the order of the data follows
from seed and step.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """States of Python's, NumPy's and torch's generators."""
    _, python_words, _ = random.getstate()
    numpy_state = np.random.get_state(legacy=False)["state"]
    states = {
        "python": torch.tensor(python_words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.append(numpy_state["key"].astype(np.int64), numpy_state["pos"])),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Take over what `rng_states` gave."""
    random.setstate((3, tuple(states["python"].tolist()), None))
    *words, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, 0, 0.0))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
