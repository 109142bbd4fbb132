"""What `make profile` records."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.config.fields import STRICT, PositiveInt, Share


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ProfileConfig:
    """What `make profile` records; other commands take no notice."""

    active: bool = False  # set by `make profile`: engines are started so that they can record
    warmup_steps: PositiveInt = 2  # before the recording: first calls compile, allocate and fill caches
    steps: PositiveInt = 2  # recorded
    engine_steps: PositiveInt = (
        16  # of an engine, recorded from the start of a rollout: each is a token of every request
    )
    stacks: bool = True  # Python's frames too: larger files, and some of the time is the recording's own
    top: PositiveInt = 12  # lines a stage in the summary
    min_share: Share = 0.002  # of a stage's time, below which a frame is not drawn
