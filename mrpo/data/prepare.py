"""From a set as distributed to a folder in the internal format: JSONL by split, images, and a manifest."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from mrpo.atomic import TEMPORARY_SUFFIX, commit_folder
from mrpo.choices import OpenRule
from mrpo.data.checks import clean_text, require_folder
from mrpo.data.funnel import Funnel
from mrpo.data.image_store import ImageStore, StoredImage
from mrpo.data.layouts.registry import READERS
from mrpo.data.leaks import LeakReport, find_leaks
from mrpo.data.manifest import is_prepared, write_manifest
from mrpo.data.rationales import Rationales, read_rationales
from mrpo.data.rows import BadRow, SourceRow
from mrpo.data.sets import NO_EXTERNAL_JUDGE, Layout, SetSpec, set_spec
from mrpo.data.settings import PrepareConfig
from mrpo.data.source import SourceTree
from mrpo.errors import ConfigError, DataError, ResourceError
from mrpo.types import Example

LEAK = "image also held out"
NO_RATIONALE = "no rationale"
DOWNLOAD = "download"  # as data.rationales


class Downloads(Protocol):
    """Where a set comes from when the user has no folder with it."""

    def fetch_set(self, spec: SetSpec) -> Path:
        """The folder with a set as distributed."""

    def fetch_rationales(self, spec: SetSpec) -> Path:
        """The folder with the rationales of a set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What came of it, for the console."""

    out: Path
    manifest: dict[str, Any]
    funnel: Funnel
    leaks: list[LeakReport]


def prepare(config: PrepareConfig, *, downloads: Downloads) -> Prepared:
    """Prepare a set; `config.out` appears whole or not at all.

    Raises:
        ConfigError: unknown set, or settings that do not fit it.
        DataError: a file is missing, damaged or unsafe, or more rows are bad than allowed.
        ResourceError: the prepared set cannot be written.
    """
    spec = _spec(config)
    if config.rationales is not None and spec.rationales is None:
        raise ConfigError(f"data.rationales={config.rationales}: there are no MedThink rationales for {spec.name}")
    out = Path(config.out).expanduser().absolute()
    if out.exists() and not (is_prepared(out) or (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(f"data.out={out} exists and is no prepared set; choose a new folder")
    root = downloads.fetch_set(spec) if config.source is None else require_folder(config.source, "data.source")
    rationales = None
    if config.rationales == DOWNLOAD:
        rationales = downloads.fetch_rationales(spec)
    elif config.rationales is not None:
        rationales = require_folder(config.rationales, "data.rationales")
    for place in filter(None, (root, rationales)):
        if out.resolve() in (place, *place.parents) or place in out.resolve().parents:
            raise ConfigError(f"data.out={out} and {place} lie in each other; choose a folder beside it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        _remove_leftovers(out)
        temporary.mkdir(parents=True)
        prepared = _fill(temporary, out, config, spec, root, rationales)
        commit_folder(temporary, out)
    except OSError as error:
        raise ResourceError(f"cannot write {out}: {error}; free some space, or choose another data.out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return prepared


def _spec(config: PrepareConfig) -> SetSpec:
    """The set, with what its owner says of files whose terms are not known here."""
    spec = set_spec(config.set)
    names = ("license", "external_judge_allowed")
    stated = [f"data.{name}" for name in names if getattr(config, name) is not None]
    if stated and spec.loader != Layout.PUBLISHED:
        judge = "allowed" if spec.external_judge_allowed else "refused"
        raise ConfigError(
            f"{' and '.join(stated)}: those of {spec.title} are known ({spec.license}; external judge {judge}); leave "
            "it out, it is for data.set=published"
        )
    if config.license is not None and not config.license.strip():
        raise ConfigError("data.license is empty; expected the license of the files in words")
    license_text, allowed = config.license or spec.license, spec.external_judge_allowed
    if spec.loader == Layout.PUBLISHED:
        allowed = config.external_judge_allowed is True
        # The rows travel without the manifest, so that they say it themselves.
        license_text += "" if allowed else f"; {NO_EXTERNAL_JUDGE}"
    return replace(spec, license=license_text, external_judge_allowed=allowed)


def _remove_leftovers(out: Path) -> None:
    """Clear away what killed processes left of this folder."""
    for item in out.parent.glob(f".{glob.escape(out.name)}.*{TEMPORARY_SUFFIX}"):
        owner = item.name.removeprefix(f".{out.name}.").removesuffix(TEMPORARY_SUFFIX)
        if owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(item)


def _fill(
    folder: Path, out: Path, config: PrepareConfig, spec: SetSpec, root: Path, rationales_root: Path | None
) -> Prepared:
    with ExitStack() as stack:
        source = stack.enter_context(SourceTree(root))
        funnel = Funnel(root=root, max_bad_rows=config.max_bad_rows)
        rationales: tuple[SourceTree, Rationales] | None = None
        if rationales_root is not None:
            assert spec.rationales is not None
            tree = stack.enter_context(SourceTree(rationales_root))
            rationales = (tree, read_rationales(tree, spec.rationales, source))
            for label, number, reason in rationales[1].faults:
                funnel.report(label, number, reason)
        images = ImageStore(source, folder, max_pixels=config.max_pixels, allow_identifiers=config.allow_identifiers)
        filling = _Filling(config, spec, funnel, images, rationales[1] if rationales else None, folder)
        try:
            for row in READERS[spec.loader](source):
                filling.add(row)
        finally:
            filling.close()
        if rationales is not None:
            rationales[1].require_joined(f"{rationales_root} (data.rationales) or {root} (data.source)")
            filling.require_training()
        leaks = find_leaks(
            {split: list(shown.values()) for split, shown in filling.images_of.items()},
            near_distance=config.near_distance,
        )
        if config.exclude_leaks:
            filling.exclude({path for report in leaks for path in report.train_images})
        if not any(counts.kept for counts in funnel.splits.values()):
            raise DataError(f"{root}: no question is left of {_summary(funnel)}; check data.open_rule and data.where")
        manifest = write_manifest(
            folder,
            config=config,
            spec=spec,
            funnel=funnel,
            leaks=leaks,
            renamed=images.renamed,
            source=source,
            rationales=rationales,
            image_digests=filling.remove_unshown(),
        )
    return Prepared(out=out, manifest=manifest, funnel=funnel, leaks=leaks)


@dataclass(slots=True)
class _Filling:
    """The prepared set while it grows; rows go to disk as they come."""

    config: PrepareConfig
    spec: SetSpec
    funnel: Funnel
    images: ImageStore
    rationales: Rationales | None
    folder: Path
    images_of: dict[str, dict[str, StoredImage]] = field(default_factory=dict)  # split: path: of all good rows
    _shown: Counter[str] = field(default_factory=Counter)  # image path: kept questions
    _ids: set[str] = field(default_factory=set)
    _files: dict[str, IO[str]] = field(default_factory=dict)

    def close(self) -> None:
        """Close the split files."""
        for file in self._files.values():
            file.close()

    def add(self, row: SourceRow | BadRow) -> None:
        """Check, count and write one row.

        Raises:
            DataError: more bad rows than allowed.
        """
        counts = self.funnel.of(row.split)
        counts.read += 1
        if row.split not in self._files:
            self._files[row.split] = (self.folder / f"{row.split}.jsonl").open("w", encoding="utf-8")
        if isinstance(row, BadRow):
            self.funnel.reject(row.split, row.file.label, row.number, row.reason)
            return
        if reason := row.left_out or self._unwanted(row):
            counts.left_out[reason] += 1
            return
        example_id = f"{self.spec.name}-{row.split}-{row.key}"
        image = self._check(row, example_id)
        if isinstance(image, str):
            self.funnel.reject(row.split, row.file.label, row.number, image)
            return
        self._ids.add(example_id)
        self.images_of.setdefault(row.split, {})[image.path] = image
        kept_by = [rule for rule in OpenRule if _keeps(rule, row)]
        counts.by_rule.update(kept_by)
        if (rule := self._rule) not in kept_by:
            counts.left_out["answered yes or no" if rule == OpenRule.NON_YES_NO else "not an open question"] += 1
            return
        rationale = row.rationale or (self.rationales.find(row) if self.rationales else None)
        if rationale is None and self.rationales and self.config.require_rationale and row.split == "train":
            counts.left_out[NO_RATIONALE] += 1
            return
        self._write(
            row,
            Example(
                id=example_id,
                image=image.path,
                question=row.question,
                answer=row.answer,
                rationale=rationale,
                dataset=self.spec.name,
                split=row.split,
                license=self.spec.license,
            ),
        )

    @property
    def _rule(self) -> OpenRule:
        return self.config.open_rule or self.spec.open_rule

    def _unwanted(self, row: SourceRow) -> str | None:
        """Why the settings leave a row out, before its image is looked at."""
        if row.language is not None and row.language not in self.config.languages:
            return f"language {row.language}"
        for name, value in self.config.where.items():
            if clean_text(row.fields.get(name)) != value:
                return f"{name} is not {value}"
        return None

    def _check(self, row: SourceRow, example_id: str) -> StoredImage | str:
        """The row's image, or what is wrong with the row.

        Raises:
            DataError: the image is DICOM that names a person; no limit of bad rows covers that.
        """
        if not row.question:
            return "the question is empty"
        if example_id in self._ids:
            return f"id {row.key!r} occurs a second time"
        if self._rule == OpenRule.OPEN and row.marked_open is None:
            return "not marked as open or closed, which data.open_rule=open needs"
        try:
            return self.images.store(row.image)
        except DataError as error:
            raise DataError(f"{self.funnel.root / row.file.label}, row {row.number}: image {error}") from None

    def _write(self, row: SourceRow, example: Example) -> None:
        self._files[row.split].write(json.dumps(asdict(example), ensure_ascii=False) + "\n")
        self._shown[example.image] += 1
        counts = self.funnel.of(row.split)
        counts.kept += 1
        counts.joined += example.rationale is not None

    def require_training(self) -> None:
        """Refuse a training split that lost all its questions for want of a rationale.

        Raises:
            DataError: it did.
        """
        counts = self.funnel.splits.get("train")
        if counts is not None and counts.left_out[NO_RATIONALE] and not counts.kept:
            raise DataError(
                f"no training question is left: {counts.left_out[NO_RATIONALE]} have no gold rationale; see that "
                "data.rationales holds MedThink's training file of this set, or keep questions without one with "
                "data.require_rationale=false"
            )

    def exclude(self, paths: set[str]) -> None:
        """Take the training questions about these images out again."""
        file = self.folder / "train.jsonl"
        if not file.exists():
            return
        counts = self.funnel.of("train")
        rest = file.with_suffix(".rest")
        with file.open(encoding="utf-8") as lines, rest.open("w", encoding="utf-8") as out:
            for line in lines:
                row = json.loads(line)
                if row["image"] not in paths:
                    out.write(line)
                    continue
                counts.left_out[LEAK] += 1
                counts.kept -= 1
                counts.joined -= row["rationale"] is not None
                self._shown[row["image"]] -= 1
        rest.replace(file)

    def remove_unshown(self) -> dict[str, str]:
        """Delete images that no kept question shows; path to digest of the others."""
        digests: dict[str, str] = {}
        for image in self.images.images:
            if self._shown[image.path] > 0:
                digests[image.path] = image.file_sha256
            else:
                self.images.drop(image)
        return digests


def _keeps(rule: OpenRule, row: SourceRow) -> bool:
    match rule:
        case OpenRule.ALL:
            return True
        case OpenRule.OPEN:
            return row.marked_open is True
        case OpenRule.NON_YES_NO:
            return row.answer.lower() not in ("yes", "no")


def _summary(funnel: Funnel) -> str:
    read = sum(counts.read for counts in funnel.splits.values())
    reasons = sum((counts.left_out for counts in funnel.splits.values()), Counter[str]())
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{read} rows read ({len(funnel.bad_rows)} bad{', ' if left_out else ''}{left_out})"
