"""Places that tests look at."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def vqa_rad_folder() -> Path | None:
    """The real VQA-RAD data set, where there is one: $MRPO_VQA_RAD or beside the checkout."""
    candidates = [os.environ.get("MRPO_VQA_RAD"), str(REPOSITORY.parent / "shared" / "data" / "vqa_rad")]
    found = [Path(item) for item in candidates if item and (Path(item) / "train.json").is_file()]
    return found[0] if found else None
