"""Questions for a run, by `DataConfig`; the only place that knows all loaders."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from mrpo.choices import DataKind
from mrpo.config import Config
from mrpo.data.checks import RowChecks, require_folder
from mrpo.data.jsonl import read_jsonl
from mrpo.data.phantom import ensure_phantom
from mrpo.data.vqa_rad import read_vqa_rad
from mrpo.errors import DataError
from mrpo.types import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Checked questions of a run."""

    train: list[Example]
    test: list[Example]
    root: Path  # the folder below which they lie
    warm: list[Example] = field(default_factory=list)  # phantom only: scans for the warm start's demonstrations
    bad_rows: list[str] = field(default_factory=list)  # dropped under data.max_bad_rows, with file, row and reason


def load_dataset(config: Config) -> Dataset:
    """Read, check and cut the data to the configured numbers of questions.

    Raises:
        DataError: missing root or file, unreadable image, bad row, or nothing left to train on.
    """
    data = config.data
    checks = RowChecks(max_bad_rows=data.max_bad_rows)
    match data.kind:
        case DataKind.PHANTOM:
            if data.num_train is None or data.num_test is None:
                unset = "data.num_train" if data.num_train is None else "data.num_test"
                raise DataError(f"{unset}=null: phantoms are generated, so say how many")
            root, splits = _phantoms(config, {"train": data.num_train, "test": data.num_test}, checks)
            train, test = splits["train"], splits["test"]
        case DataKind.JSONL:
            root = require_folder(data.root, "data.root")
            train = read_jsonl(root / data.train_file, root=root, checks=checks)
            test = read_jsonl(root / data.test_file, root=root, checks=checks)
        case DataKind.VQA_RAD:
            root = require_folder(data.root, "data.root")
            train = read_vqa_rad(root, "train", checks=checks)
            test = read_vqa_rad(root, "test", checks=checks)
    train, test = train[: data.num_train], test[: data.num_test]
    if len(train) < config.rollout.prompts_per_step:
        raise DataError(
            f"{root}: {len(train)} usable training questions are fewer than "
            f"rollout.prompts_per_step={config.rollout.prompts_per_step}; add rows or lower it"
        )
    if not test and (config.eval.before or config.eval.after or config.eval.every_steps):
        raise DataError(f"{root}: no test questions; switch eval.before and eval.after off or add some")
    # A toy policy learns to see and speak on phantoms, whatever it is asked afterwards.
    num_warm = config.model.warm_start.num_scans if config.model.path is None else 0
    warm = _phantoms(config, {"warm": num_warm}, checks)[1]["warm"] if num_warm else []
    return Dataset(train=train, test=test, root=root, warm=warm, bad_rows=checks.bad_rows)


def _phantoms(config: Config, counts: dict[str, int], checks: RowChecks) -> tuple[Path, dict[str, list[Example]]]:
    """The folder of phantom splits in the cache, and these, drawn first where they are not there."""
    cache = Path(config.cache_dir).expanduser()
    root = ensure_phantom(cache, counts=counts, seed=config.data.seed, noise=config.data.noise)
    return root, {split: read_jsonl(root / f"{split}.jsonl", root=root, checks=checks) for split in counts}
