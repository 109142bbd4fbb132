"""Actors under names that Ray's dashboard shows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError

MOST_NAMES = 1000  # of actors that share a name but for a number


def named_actor(cls: type, name: str, *args: Any, options: Mapping[str, Any], **kwargs: Any) -> tuple[Any, str]:
    """Make an actor of a plain class; the actor and its name.

    Args:
        cls: a plain class.
        name: of the actor; where one of that name is still there, `name.2` and so on.
        args: of `cls`.
        options: Ray's, but for the name.
        kwargs: of `cls`.
    """
    for free in (name, *(f"{name}.{number}" for number in range(2, MOST_NAMES))):
        actor_class: Any = ray.remote(_called(cls, free)).options(name=free, **options)
        with suppress(ActorAlreadyExistsError):  # another pool of the job has it, or one that ended a moment ago
            return actor_class.remote(*args, **kwargs), free
    raise AssertionError(f"{MOST_NAMES} actors are named {name}")


def _called(cls: type, name: str) -> type:
    """The class with the actor's name for its `repr`, which Ray's dashboard shows and puts before the actor's logs."""
    return type(cls.__name__, (cls,), {"__repr__": lambda self: name, "__module__": cls.__module__})
