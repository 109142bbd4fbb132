"""Names of actors where Ray still keeps some of the dead."""

from __future__ import annotations

import itertools

import pytest
from ray.exceptions import ActorAlreadyExistsError

from mrpo.ray_nodes import under_free_name


def test_the_first_free_name_is_taken() -> None:
    taken: list[str] = []

    def make(name: str) -> str:
        if name in taken:
            raise ActorAlreadyExistsError(f"{name} is taken")
        taken.append(name)
        return f"actor {name}"

    assert under_free_name("learner-0", make) == ("actor learner-0", "learner-0")
    assert under_free_name("learner-0", make) == ("actor learner-0.2", "learner-0.2")
    assert under_free_name("learner-0", make) == ("actor learner-0.3", "learner-0.3")


def test_numbers_that_were_tried_are_not_tried_again() -> None:
    """No two lives of an engine share a name, also where the first one's is free by then."""
    numbers = itertools.count(1)
    names = [under_free_name("engine-0", lambda name: None, numbers)[1] for _ in range(2)]
    assert names == ["engine-0", "engine-0.2"]


def test_what_else_keeps_an_actor_from_being_made_is_raised() -> None:
    def make(name: str) -> None:
        raise ValueError("no such resource")

    with pytest.raises(ValueError, match="no such resource"):
        under_free_name("judge-0", make)
