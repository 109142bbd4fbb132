"""The files of a study's numbers: `results.parquet` and `aggregate.parquet` for programs, `results.md` for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from mrpo.ablation.results import MEASURES, Aggregate, ResultRow, Spread, aggregate
from mrpo.atomic import write_text, write_with
from mrpo.report.facts import duration

ARROW = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
MISSING = "–"
ROW_COLUMNS = (
    "axis",
    "setting",
    "seed",
    "status",
    "accuracy",
    "early failures",
    "failing",
    "FAR",
    "steps",
    "reward",
    "wall time",
    "run",
)
AGGREGATE_COLUMNS = ("axis", "setting", "seeds", "accuracy", "early failures", "failing", "FAR", "reward")


def write_tables(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Write the three files, each atomically."""
    sums = aggregate(rows)
    _write_parquet(folder / "results.parquet", [dataclasses.asdict(row) for row in rows], result_schema())
    _write_parquet(folder / "aggregate.parquet", [_flat(item) for item in sums], aggregate_schema())
    write_text(folder / "results.md", markdown(rows, sums))


def result_schema() -> Any:
    """Columns of `results.parquet`: the fields of `ResultRow`."""
    return pa.schema([(name, _arrow(kind)) for name, kind in get_type_hints(ResultRow).items()])


def aggregate_schema() -> Any:
    """Columns of `aggregate.parquet`: the fields of `Aggregate`, each measure as mean, min, max and number of seeds."""
    plain = [(name, _arrow(kind)) for name, kind in get_type_hints(Aggregate).items() if name != "spreads"]
    ends = [("mean", pa.float64()), ("min", pa.float64()), ("max", pa.float64()), ("num", pa.int64())]
    return pa.schema(plain + [(f"{name}_{end}", kind) for name in MEASURES for end, kind in ends])


def markdown(rows: Sequence[ResultRow], sums: Sequence[Aggregate]) -> str:
    """Both tables with what their columns mean."""
    study = rows[0].study if rows else ""
    parts = [
        f"# Ablation study `{study}`",
        "![accuracy and early failures of every variant](results.svg)",
        "## Over seeds",
        "After training, on held-out questions: mean (smallest to largest) over the finished seeds. Early failures: "
        "judged completions that first fail in the first third of their steps. Failing: with any invalid step. FAR: "
        "share of invalid steps after the first one. Reward: as the variant defines it, not comparable where rewards "
        "differ. **Bold**: the default that the axes vary.",
        _table(AGGREGATE_COLUMNS, [_aggregate_cells(item) for item in sums]),
        "## Each run",
        "Before → after training, with 95 % Wilson intervals over the questions. Axes that share the default show the "
        "same run.",
        _table(ROW_COLUMNS, [_row_cells(row) for row in rows]),
    ]
    failed = {row.config_hash: row for row in rows if row.error is not None}
    lines = [f"- {_escape(row.settings)}, seed {row.seed}: {_escape(row.error or '')}" for row in failed.values()]
    parts += ["## Errors", "\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n"


def _write_parquet(path: Path, rows: list[dict[str, Any]], schema: Any) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    write_with(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _arrow(kind: Any) -> Any:
    """The column type of a field; `X | None` is X, as every column may be null."""
    return ARROW[kind] if kind in ARROW else ARROW[kind.__args__[0]]


def _flat(item: Aggregate) -> dict[str, Any]:
    flat = {name: getattr(item, name) for name in get_type_hints(Aggregate) if name != "spreads"}
    for name, spread in item.spreads.items():
        flat |= {
            f"{name}_mean": spread.mean if spread else None,
            f"{name}_min": spread.low if spread else None,
            f"{name}_max": spread.high if spread else None,
            f"{name}_num": spread.num if spread else 0,
        }
    return flat


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows])


def _aggregate_cells(item: Aggregate) -> list[str]:
    spreads = item.spreads
    return [
        item.axis,
        _name(item.settings, item.is_default),
        f"{item.num_finished} of {item.num_seeds}",
        _share_spread(spreads["accuracy_after"]),
        _share_spread(spreads["early_after"]),
        _share_spread(spreads["failing_after"]),
        _share_spread(spreads["far_after"]),
        _number_spread(spreads["reward_end"]),
    ]


def _row_cells(row: ResultRow) -> list[str]:
    accuracy = (row.accuracy_after, row.accuracy_after_low, row.accuracy_after_high)
    early = (row.early_after, row.early_after_low, row.early_after_high)
    return [
        row.axis,
        _name(row.settings, row.is_default),
        str(row.seed),
        row.status,
        f"{_share(row.accuracy_before)} → {_interval(*accuracy)}",
        f"{_share(row.early_before)} → {_interval(*early)}",
        f"{_share(row.failing_before)} → {_share(row.failing_after)}",
        f"{_share(row.far_before)} → {_share(row.far_after)}",
        str(row.num_steps),
        MISSING if row.reward_end is None else f"{row.reward_end:.2f}",
        duration(row.wall_s),
        MISSING if row.run_folder is None else f"`{_escape(row.run_folder)}`",
    ]


def _name(settings: str, is_default: bool) -> str:
    return f"**{_escape(settings)}**" if is_default else _escape(settings)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value * 100:.1f} %"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return MISSING
    return f"{value * 100:.1f} % ({low * 100:.1f}–{high * 100:.1f})"


def _share_spread(spread: Spread | None) -> str:
    if spread is None:
        return MISSING
    return f"{spread.mean * 100:.1f} % ({spread.low * 100:.1f}–{spread.high * 100:.1f})"


def _number_spread(spread: Spread | None) -> str:
    return MISSING if spread is None else f"{spread.mean:.2f} ({spread.low:.2f} to {spread.high:.2f})"
