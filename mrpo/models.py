"""`python -m mrpo.models`: the model families, their published checkpoints, and what each needs. No network."""

from __future__ import annotations

import sys
from typing import TextIO

import rich.console
from rich.table import Table
from rich.text import Text

from mrpo.choices import ToyFamily
from mrpo.families import FAMILIES, Published

WIDTH = 160  # characters, where the output is no terminal


def models_table() -> Table:
    """One row a published checkpoint, one a toy."""
    table = Table()
    for title in ("family", "checkpoint", "license", "think tag", "start with", "convert first"):
        table.add_column(title, overflow="fold")
    for family in FAMILIES.values():
        tag = f"<{family.think_tag}>"
        for published in family.published:
            name = published.hub_id + (f" ({published.note})" if published.note else "")
            needs = "yes" if published.convert else "no"
            cells = (family.model_type, name, published.license, tag, _start(published), needs)
            table.add_row(*(Text(cell) for cell in cells))
        if family.model_type in set(ToyFamily):
            cells = (family.model_type, "toy, about a million parameters", "–", tag, _toy(family.model_type), "no")
            table.add_row(*(Text(cell) for cell in cells))
        table.add_section()
    return table


def _start(published: Published) -> str:
    changed = ' ARGS="model.path=<converted folder>"' if published.convert else ""
    return " or ".join(f"EXP={name}" for name in published.experiments) + changed


def _toy(model_type: str) -> str:
    default = model_type == ToyFamily.QWEN2_5_VL
    return "make train" if default else f'ARGS="model=toy_{model_type}"'


def main(file: TextIO | None = None) -> int:
    """Print the table; returns the exit code."""
    out = file or sys.stdout
    console = rich.console.Console(file=out, highlight=False, width=None if out.isatty() else WIDTH)
    console.print(models_table())
    console.print(
        Text(
            "Licenses are as the model cards and repositories state them: read them before use. "
            "Conversion: make convert MODEL=<folder or hub id> OUT=<new folder> (docs/models.md)."
        ),
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
