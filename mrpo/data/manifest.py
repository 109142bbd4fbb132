"""What was prepared, from what and how: the same bytes for the same input, wherever and whenever it is made."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrpo.config import plain
from mrpo.data.funnel import Funnel
from mrpo.data.leaks import LeakReport
from mrpo.data.rationales import PUBLISHED, Rationales
from mrpo.data.sets import SetSpec
from mrpo.data.settings import PrepareConfig
from mrpo.data.source import SourceTree, sha256_of

FILE = "manifest.json"
FORMAT = "mrpo-data-1"
PLACES = ("source", "rationales", "out", "cache_dir")  # settings that hold paths of one machine
RECORD_SUFFIXES = (".json", ".jsonl", ".csv", ".txt", ".parquet", ".zip")
PACKAGES = ("mrpo", "imagehash", "ijson", "numpy", "pillow", "pyarrow", "pydicom", "scipy")


def write_manifest(
    folder: Path,
    *,
    config: PrepareConfig,
    spec: SetSpec,
    funnel: Funnel,
    leaks: Sequence[LeakReport],
    renamed: Sequence[str],
    source: SourceTree,
    rationales: tuple[SourceTree, Rationales] | None,
    image_digests: dict[str, str],
) -> dict[str, Any]:
    """Write images.sha256 (as `sha256sum -c` reads it), leaks.jsonl and manifest.json; returns the manifest."""
    lines = [f"{digest}  {path}\n" for path, digest in sorted(image_digests.items())]
    (folder / "images.sha256").write_text("".join(lines), encoding="utf-8")
    with (folder / "leaks.jsonl").open("w", encoding="utf-8") as out:
        for report in leaks:
            for leak in report.leaks:
                row = {"split": report.split, "image": leak.held_out, "train": leak.train, "distance": leak.distance}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    outputs = sorted(file for file in folder.iterdir() if file.is_file())
    manifest = {
        "format": FORMAT,
        "set": spec.name,
        "license": spec.license,
        "external_judge_allowed": spec.external_judge_allowed,
        "open_rule": str(config.open_rule or spec.open_rule),
        "command": command(config),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "rows": funnel.facts(),
        "bad_rows": funnel.bad_rows,
        "renamed_images": list(renamed),
        "passed_over": _passed_over(source, rationales),
        "rationales": None if rationales is None else _rationale_facts(*rationales),
        "leaks": {report.split: _leak_facts(report) for report in leaks},
        "num_images": len(image_digests),
        "inputs": _input_facts(source),
        "outputs": {file.name: sha256_of(file) for file in outputs},
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")
    return manifest


def is_prepared(folder: Path) -> bool:
    """Whether a folder was written by this command, so that it may be replaced."""
    try:
        manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def command(config: PrepareConfig) -> str:
    """The command line without paths: every setting that is not its default."""
    words = ["python -m mrpo.data prepare"]
    for item in fields(config):
        value = plain(getattr(config, item.name))
        default = plain(_default(item))
        if item.name in PLACES:
            if item.name != "cache_dir" and value is not None:
                words.append(f"data.{item.name}=<{item.name}>")
        elif value != default:
            text = shlex.quote(value) if isinstance(value, str) else json.dumps(value, sort_keys=True)
            words.append(f"data.{item.name}={text}")
    return " ".join(words)


def _default(item: Any) -> Any:
    """A pydantic dataclass keeps a factory's default where a plain one would."""
    return {} if item.name == "where" else item.default


def _passed_over(source: SourceTree, rationales: tuple[SourceTree, Rationales] | None) -> list[str]:
    """What lies in the folders and was never opened, each with the reason."""
    trees = [source] if rationales is None else [source, rationales[0]]
    return sorted({f"{path} {fault}" for tree in trees for path, fault in tree.passed_over.items()})


def _input_facts(tree: SourceTree) -> dict[str, Any]:
    files = sorted(file for file in tree.opened if file.suffix.lower() in RECORD_SUFFIXES)
    return {path: {"bytes": size, "sha256": digest} for path, size, digest in _digests(tree.root, files)}


def _digests(root: Path, files: Iterable[Path]) -> Iterable[tuple[str, int, str]]:
    for file in files:
        yield file.relative_to(root).as_posix(), file.stat().st_size, sha256_of(file)


def _leak_facts(report: LeakReport) -> dict[str, int]:
    return {
        "images": report.num_images,
        "identical": report.num_identical,
        "near_identical": report.num_near,
        "train_images": len(report.train_images),
    }


def _rationale_facts(tree: SourceTree, rationales: Rationales) -> dict[str, Any]:
    splits = {
        split: {
            "read": counts.read,
            "bad": counts.bad,
            "repeated": counts.repeated,
            "joined": counts.joined,
            "without_a_question": counts.without_question,
        }
        for split, counts in sorted(rationales.splits.items())
    }
    return {"splits": splits, "inputs": _input_facts(tree), "as_published": as_published(tree, rationales)}


def as_published(tree: SourceTree, rationales: Rationales) -> dict[str, bool | None]:
    """File to whether it is the one MedThink published; None where the published digest is not known."""
    found: dict[str, bool | None] = {}
    for file in rationales.files:
        known = next((facts for path, facts in PUBLISHED.items() if file.path.endswith(path)), None)
        matches = known is not None and known == (file.file.stat().st_size, sha256_of(file.file))
        found[file.path] = None if known is None else matches
    return found
