"""The files of an evaluation's numbers: `results.md` and `results.tex` for people, `results.json` for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text
from mrpo.eval.benchmark import Benchmark
from mrpo.eval.pairing import PairedResult, Unpaired
from mrpo.eval.tables import Cell, Table, result_tables

LATEX = {
    **{
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "†": r"\textdagger{}",
        "−": "$-$",
    },
    **{"“": "``", "”": "''", "’": "'", "<": r"\textless{}", ">": r"\textgreater{}", "×": r"$\times$"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
MARKDOWN = {**{character: f"\\{character}" for character in "\\|*_`[]<>#"}, "\n": " "}


def write_tables(folder: Path, benchmark: Benchmark) -> list[Path]:
    """Write the three files, each atomically.

    Returns:
        Their paths.
    """
    tables = result_tables(benchmark)
    files = {
        "results.md": markdown(benchmark, tables),
        "results.tex": "\n".join(latex_table(table) for table in tables),
        "results.json": json.dumps(results_tree(benchmark), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def results_tree(benchmark: Benchmark) -> dict[str, Any]:
    """All numbers as JSON: shares in [0, 1]."""
    return {
        "models": {item.facts.model: asdict(item) for item in benchmark.models},
        "paired": [asdict(pair) for pair in benchmark.pairs if isinstance(pair, PairedResult)],
        "unpaired": [asdict(pair) for pair in benchmark.pairs if isinstance(pair, Unpaired)],
        "notices": benchmark.notices,
    }


def markdown(benchmark: Benchmark, tables: Sequence[Table]) -> str:
    """A document with every table, what its numbers mean, and how they were made."""
    parts = ["# Benchmark"]
    parts += [f"> {_mark(notice)}" for notice in benchmark.notices]
    for table in tables:
        parts += [f"## {_mark(table.title)}", markdown_table(table), _mark(table.note)]
    parts.append("## How it was measured")
    for item in benchmark.models:
        facts = item.facts
        entries = {
            "seed": str(facts.seed),
            "judge": facts.judge or "none",
            "rubric for steps": facts.step_rubric or "none",
            "rubric for answers": facts.answer_rubric or "none",
            "open-ended rules": ", ".join(f"{name}: {rule}" for name, rule in facts.open_rules.items()),
            **facts.settings,
        }
        lines = [f"- {_mark(label)}: {_mark(value)}" for label, value in entries.items()]
        parts.append("\n".join([f"**{_mark(facts.model)}**", "", *lines, f"- command: `{facts.command}`"]))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A GitHub-flavoured Markdown table; published rows are in italics."""
    lines = ["| " + " | ".join(_mark_cell(cell) for cell in table.columns) + " |"]
    lines.append("|" + "---|" * table.num_labels + "--:|" * (len(table.columns) - table.num_labels))
    for line in table.lines:
        cells = [_mark_cell(cell) for cell in line.cells]
        lines.append("| " + " | ".join(f"*{cell}*" if cell and line.is_published else cell for cell in cells) + " |")
    return "\n".join(lines)


def latex_table(table: Table) -> str:
    """A `table` for the packages booktabs and, to fit the page's width, graphicx."""
    columns = "l" * table.num_labels + "r" * (len(table.columns) - table.num_labels)
    lines = []
    for number, line in enumerate(table.lines):
        if line.begins_group and number:
            lines.append("\\midrule")
        cells = [_tex_cell(cell) for cell in line.cells]
        row = " & ".join(f"\\textit{{{cell}}}" if cell and line.is_published else cell for cell in cells)
        # After the end of a row "[" and "*" would be its arguments.
        lines.append(("{}" if row.startswith(("[", "*")) else "") + row + r" \\")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_tex_cell(cell) for cell in table.columns) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _mark_cell(cell: Cell) -> str:
    return _mark(f"{cell.text} {cell.detail}".strip())


def _mark(text: str) -> str:
    return "".join(MARKDOWN.get(character, character) for character in text)


def _tex_cell(cell: Cell) -> str:
    return _tex(cell.text) + (rf" {{\scriptsize {_tex(cell.detail)}}}" if cell.detail else "")


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
