"""Actors under names that Ray's dashboard shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from mrpo.ray_nodes import under_free_name


def named_actor(cls: type, name: str, *args: Any, options: Mapping[str, Any], **kwargs: Any) -> tuple[Any, str]:
    """Make an actor of a plain class; the actor and its name.

    Args:
        cls: a plain class.
        name: of the actor; where one of that name is still there, `name.2` and so on.
        args: of `cls`.
        options: Ray's, but for the name.
        kwargs: of `cls`.
    """

    def make(free: str) -> Any:
        actor_class: Any = ray.remote(_called(cls, free)).options(name=free, **options)
        return actor_class.remote(*args, **kwargs)

    return under_free_name(name, make)


def _called(cls: type, name: str) -> type:
    """The class with the actor's name for its `repr`, which Ray's dashboard shows and puts before the actor's logs."""
    return type(cls.__name__, (cls,), {"__repr__": lambda self: name, "__module__": cls.__module__})
