"""Settings of `python -m mrpo.data prepare`: each default lives once, in a field here, with its meaning and unit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from mrpo.choices import OpenRule
from mrpo.config.fields import STRICT, NonNegativeInt, PositiveInt


@dataclass(kw_only=True, frozen=True, config=STRICT)
class PrepareConfig:
    """What to prepare, from where, and what to leave out."""

    set: str  # a name of mrpo/data/sets.py
    out: str  # new folder for the prepared set; an earlier prepared set there is replaced
    source: str | None = None  # folder with the set as distributed; null: download it
    rationales: str | None = None  # folder with MedThink's files, or "download"; null: no rationales
    require_rationale: bool = True  # with rationales, training keeps only questions that have one
    license: str | None = None  # set=published: what the files may be used under; null: "as its source sets"
    external_judge_allowed: bool | None = None  # set=published: whether a judge outside may see them; null: no
    open_rule: OpenRule | None = None  # which questions are kept; null: the set's own rule
    languages: tuple[str, ...] = ("en",)  # of sets that mark their questions' language
    where: dict[str, str] = Field(default_factory=dict)  # field of the source: value a question must have there
    exclude_leaks: bool = False  # drop training questions about images that are also held out
    near_distance: Annotated[int, Field(ge=0, le=255)] = 20  # bits of 256 that near-identical images may differ by
    allow_identifiers: bool = False  # accept DICOM files that name the patient, or any person
    max_bad_rows: NonNegativeInt = 0  # bad rows dropped (each reported) before the command fails
    max_pixels: PositiveInt = 100_000_000  # width × height of one image; larger ones are bad
    cache_dir: str = "~/.cache/mrpo/downloads"  # where downloaded files are kept


@dataclass(kw_only=True, frozen=True, config=STRICT)
class PrepareCommand:
    """All settings of the command."""

    data: PrepareConfig
