"""The table of metrics as docs/metrics.md shows it. Pure."""

from __future__ import annotations

from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Row, Stage, Unit

BEGIN = "<!-- metrics: written by python -m mrpo.telemetry -->"
END = "<!-- end of metrics -->"


def text() -> str:
    """A table for each stage."""
    parts: list[str] = []
    for stage in Stage:
        parts += [
            f"### {stage.value}",
            "",
            "| metric | unit | kind | on Ray's endpoint | meaning |",
            "|---|---|---|---|---|",
        ]
        parts += [_line(row) for row in TABLE.of(stage)]
        parts.append("")
    return "\n".join(parts)


def put_into(document: str) -> str:
    """The document with the tables in place of those it has."""
    before, _, rest = document.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{text()}\n{END}{after}"


def _line(row: Row) -> str:
    labels = "{" + ", ".join(row.label_names) + "}" if row.label_names else ""
    where = " (at once)" if row.at_once else " (live)" if row.live or row.kind == Kind.HISTOGRAM else ""
    unit = "–" if row.unit == Unit.NONE else row.unit.value.replace("_", " ")
    return f"| `{row.name}`{where} | {unit} | {row.kind} | `{row.exported}{labels}` | {row.description} |"
