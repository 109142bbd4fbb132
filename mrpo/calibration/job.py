"""What a check is about: labels, the judge's settings as a check needs them, and what makes two checks the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mrpo.calibration.labels import LabelledCompletion, digest_of_labels, read_labels
from mrpo.calibration.phantom_labels import PHANTOM_LABELS
from mrpo.choices import LEXICAL_NOTICE, LOCAL_KINDS, JudgeKind
from mrpo.config import Config, JudgeConfig, plain
from mrpo.errors import ConfigError
from mrpo.eval.subject import digest_of
from mrpo.judge_parts import check_judge_urls, judge_identity
from mrpo.judge_permission import require_judge_allowed
from mrpo.types import Example

# Settings of the judge that change what it rules.
MEASURED = ("kind", "noise", "send_image", "temperature", "max_completion_tokens", "provider")
MEASURED_BY_RULES = ("kind", "noise", "lexical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that is known before a judge starts."""

    config: Config
    file: Path
    completions: list[LabelledCompletion]
    labels_sha256: str
    notices: list[str]  # what a reader must know first

    @property
    def name(self) -> str:
        """Of the judge, in tables."""
        judge, identity = self.config.judge, judge_identity(self.config.judge)
        model = identity.model if identity else "none"
        return self.config.check.name or (f"{model}, noise {judge.noise:g}" if judge.noise else model)


def prepare(config: Config) -> Job:
    """Read the labels, and set the judge up for them.

    Raises:
        ConfigError: the judge cannot rule on these completions or may not see them, or its URL is none or holds a
            secret, which the results would show.
        DataError: a bad label; the message names file, row, field and value.
    """
    check_judge_urls(config.judge)
    given = config.check.labels
    file = Path(given).expanduser() if given else PHANTOM_LABELS
    completions = read_labels(file)
    judge = config.judge
    if judge.kind == JudgeKind.ORACLE:
        stranger = next((item for item in completions if item.dataset != "phantom"), None)
        if stranger is not None:
            raise ConfigError(
                f"judge.kind=oracle rules on phantom data only, but {file} holds {stranger.id!r} of dataset "
                f"{stranger.dataset!r}; set judge=openai_compatible, or judge=none to read the labels alone"
            )
    if judge.kind != JudgeKind.NONE:
        require_judge_allowed([_example(item) for item in completions], judge)
    # A ruling that is known from before says nothing of the judge's consistency.
    judge = replace(
        judge, send_image=_sends_images(judge, completions, file), cache=replace(judge.cache, enabled=False)
    )
    config = replace(config, judge=judge)
    return Job(
        config=config,
        file=file,
        completions=completions,
        labels_sha256=digest_of_labels(completions),
        notices=_notices(judge),
    )


def identity_of(job: Job) -> dict[str, Any]:
    """What is measured, as JSON-like data; repeats and orders may grow within a check, as they only add calls."""
    judge, tree = judge_identity(job.config.judge), plain(job.config.judge)
    names = MEASURED_BY_RULES if job.config.judge.kind in LOCAL_KINDS else MEASURED
    return {
        "name": job.name,
        "labels": job.labels_sha256,
        "seed": job.config.seed,
        "judge": None if judge is None else asdict(judge),
        "settings": {name: tree[name] for name in names},
    }


def folder_of(job: Job) -> Path:
    """Where the results go."""
    config = job.config
    if config.check.out is not None:
        return Path(config.check.out).expanduser()
    digest = digest_of([str(item) for item in identity_of(job).items() if item[0] != "name"])
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", job.name).strip("-")
    return Path(config.runs_dir).expanduser() / "judge-check" / f"{slug}-{digest}"


def settings_shown(job: Job) -> dict[str, str]:
    """Settings in words, for the page."""
    judge = job.config.judge
    shown = {
        "images sent": "yes" if judge.send_image else "no",
        "temperature": "not sent" if judge.temperature is None else f"{judge.temperature:g}",
        "max completion tokens": str(judge.max_completion_tokens),
        "calls in flight": str(judge.concurrency),
    }
    if judge.kind == JudgeKind.OPENAI_COMPATIBLE:
        shown["reply held to its form by"] = str(judge.provider.structured)
    return shown


def _sends_images(judge: JudgeConfig, completions: Sequence[LabelledCompletion], file: Path) -> bool:
    """Whether the judge sees the images; all are asked about alike.

    Raises:
        ConfigError: some completions have an image and some none.
    """
    without = [item for item in completions if item.image is None]
    if not judge.send_image or judge.kind in LOCAL_KINDS or len(without) == len(completions):
        return False
    if without:
        raise ConfigError(
            f"{file}: {len(without)} of {len(completions)} completions have no image, the first is {without[0].id!r}; "
            "give all of them one, or ask about text alone with judge.send_image=false"
        )
    return True


def _notices(judge: JudgeConfig) -> list[str]:
    found = [LEXICAL_NOTICE] if judge.kind == JudgeKind.LEXICAL else []
    if judge.noise:
        found.append(f"judge.noise={judge.noise:g}: so large a share of the verdicts was turned over on purpose.")
    if not judge.send_image and judge.kind not in (*LOCAL_KINDS, JudgeKind.NONE):
        found.append("No images were sent: the judge saw text alone.")
    return found


def _example(item: LabelledCompletion) -> Example:
    """As the permission check reads it; a completion without a named license is its owner's business."""
    return Example(
        id=item.id,
        image=item.image or "",
        question=item.question,
        answer=item.answer,
        rationale=item.rationale,
        dataset=item.dataset or "labels",
        split="",
        license=item.license or "",
    )
