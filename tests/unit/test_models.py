"""`make models`: every family, checkpoint, license and think tag, without a network."""

from __future__ import annotations

import io
from pathlib import Path

import conf
from mrpo.families import FAMILIES
from mrpo.models import main


def test_the_table_names_all_there_is() -> None:
    out = io.StringIO()
    assert main(out) == 0
    text = " ".join(out.getvalue().split())
    for family in FAMILIES.values():
        assert family.model_type in text and f"<{family.think_tag}>" in text
        for published in family.published:
            assert published.hub_id in text and f"EXP={published.experiment}" in text
    assert "Apache-2.0" in text and "MIT" in text and 'ARGS="model=toy_internvl"' in text


def test_experiments_and_conversions_exist() -> None:
    (folder,) = conf.__path__
    published = [item for family in FAMILIES.values() for item in family.published]
    assert [item.hub_id for item in published if item.convert] == ["OpenGVLab/InternVL3-8B-Instruct"]
    for item in published:
        assert (Path(folder) / "experiment" / f"{item.experiment}.yaml").is_file()
