"""`make models`: every family, checkpoint, license and think tag, without a network."""

from __future__ import annotations

import io

from mrpo.choices import ToyFamily
from mrpo.compose import choices, compose_config
from mrpo.families import FAMILIES
from mrpo.models import main

REQUIRED = ["data.root=x", "judge.url=http://x/v1", "judge.model=x"]  # of a published recipe


def test_the_table_names_all_there_is() -> None:
    out = io.StringIO()
    assert main(out) == 0
    text = " ".join(out.getvalue().split())
    for family in FAMILIES.values():
        assert family.model_type in text and f"<{family.think_tag}>" in text
        for published in family.published:
            assert published.hub_id in text
            assert published.experiments and all(f"EXP={name}" in text for name in published.experiments)
    assert "Apache-2.0" in text and "MIT" in text and 'ARGS="model=toy_internvl"' in text


def test_the_experiments_named_start_from_a_checkpoint_of_the_family() -> None:
    named = set()
    for family in FAMILIES.values():
        for name in {name for published in family.published for name in published.experiments}:
            config = compose_config([f"experiment={name}", *REQUIRED])
            assert config.model.family == ToyFamily(family.model_type)
            assert config.model.path in [published.hub_id for published in family.published if not published.convert]
            named.add(name)
    assert named == {name for name in choices("experiment") if not name.startswith(("_", "phantom", "vqa_rad"))}


def test_what_needs_a_conversion_is_in_the_custom_layout() -> None:
    published = [item for family in FAMILIES.values() for item in family.published]
    assert [item.hub_id for item in published if item.convert] == ["OpenGVLab/InternVL3-8B-Instruct"]
