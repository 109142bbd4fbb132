"""Faulty demonstrations for the warm start: plausible traces that lean to one confident prior.

Each attribute of a demonstration is replaced, with its own chance, by one fixed value, and the rest of the trace stays
consistent with it. A policy trained on them states the prior when it decodes greedily, and the truth often enough when
it samples for reinforcement to find it.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from mrpo.config import ErrorRatesConfig
from mrpo.phantom.language import Belief
from mrpo.phantom.world import Half, Modality, Organ, Side

PRIOR = Belief(
    modality=Modality.CT.value,
    organ=Organ.LIVER.value,
    side=Side.LEFT.value,
    half=Half.UPPER.value,
    num_lesions=1,
    marker=False,
)


def mislead(truth: Belief, rng: np.random.Generator, rates: ErrorRatesConfig) -> Belief:
    """A belief in which each attribute is the prior's with its chance in `rates`, else the truth's.

    The marker is always stated truly: it is a distractor to be named, not an error to be made.
    """
    chances = asdict(rates)
    errors = rng.random(len(chances)) < np.array(list(chances.values()))
    wrong = {name: getattr(PRIOR, name) for name, error in zip(chances, errors, strict=True) if error}
    return replace(truth, **wrong)
