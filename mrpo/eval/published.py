"""The numbers that were published with MRPO (arXiv 2606.31825), to stand beside ours and marked as published.

Shares are in per cent, as printed. The printed average is the micro mean over the paper's questions, see `micro_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrpo.eval.cascade import Stage

SET_SIZES = {  # questions in the paper
    "vqa_rad": 200,
    "slake": 706,  # of answers other than yes and no; some printed accuracies are over the 645 marked OPEN instead
    "pathvqa": 3357,
    "pmc_vqa": 2000,
    "vqa_med_2021": 425,
    "quilt_vqa": 724,
    "radimagenet_vqa": 2000,
    "mimic_cxr_vqa": 1724,
}
FAR_POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # middles of the bins of the first-failure point
# The printed average of these is not the micro mean of their printed accuracies.
UNREPRODUCED = {("Qwen2.5-VL-7B", "SFT"): 23.94, ("InternVL3-8B", "SFT"): 28.73}  # row: its micro mean


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAccuracy:
    """A printed row."""

    family: str
    method: str
    accuracy: Mapping[str, float]  # set: per cent
    average: float  # as printed

    @property
    def name(self) -> str:
        """The row as tables call it."""
        return f"{self.family} {self.method}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCascade:
    """Printed measures of failure cascades.

    The stages are of Qwen3-VL-8B; the FAR rows, which name no family, are taken to be of the same.
    """

    method: str
    stages: Mapping[Stage, float]  # per cent of the failing completions; only what was printed
    far: tuple[float, float, float, float, float]  # per cent, at `FAR_POINTS`

    @property
    def name(self) -> str:
        """The row as figures call it."""
        return f"Qwen3-VL-8B {self.method}"


def _row(family: str, method: str, average: float, *values: float) -> PublishedAccuracy:
    names = list(SET_SIZES)[-len(values) :]  # fewer values: the sets outside the training data, which come last
    return PublishedAccuracy(
        family=family, method=method, accuracy=dict(zip(names, values, strict=True)), average=average
    )


QWEN2_5, QWEN3, INTERNVL3 = "Qwen2.5-VL-7B", "Qwen3-VL-8B", "InternVL3-8B"
ACCURACIES = (
    _row(QWEN2_5, "base", 23.36, 42.00, 58.29, 17.10, 28.35, 5.18, 19.06, 27.20, 15.08),
    _row(QWEN2_5, "SFT", 23.59, 38.50, 63.88, 18.83, 28.50, 4.71, 18.37, 26.20, 15.02),
    _row(QWEN2_5, "GRPO", 26.06, 44.00, 65.27, 20.52, 31.05, 3.76, 20.99, 29.30, 16.71),
    _row(QWEN2_5, "GDPO", 25.92, 42.50, 66.29, 19.60, 28.60, 7.76, 20.17, 32.00, 16.47),
    _row(QWEN2_5, "MRPO", 26.79, 41.50, 65.89, 21.30, 30.85, 5.65, 22.79, 29.65, 18.65),
    _row(QWEN3, "base", 26.83, 43.00, 59.69, 21.48, 31.00, 9.41, 23.90, 33.15, 15.31),
    _row(QWEN3, "SFT", 26.79, 45.00, 66.29, 21.27, 30.35, 7.76, 19.48, 33.40, 15.20),
    _row(QWEN3, "GRPO", 28.69, 45.00, 67.14, 20.11, 30.25, 9.65, 24.03, 40.60, 18.79),
    _row(QWEN3, "GDPO", 29.01, 42.50, 67.28, 19.09, 32.10, 12.47, 22.51, 40.10, 21.46),
    _row(QWEN3, "MRPO", 29.09, 41.50, 68.27, 20.43, 33.00, 12.00, 23.90, 40.20, 17.46),
    _row(INTERNVL3, "base", 28.07, 45.50, 64.73, 22.97, 30.00, 7.59, 22.24, 37.60, 15.20),
    _row(INTERNVL3, "SFT", 27.94, 44.00, 68.83, 26.57, 29.50, 4.71, 17.12, 35.20, 17.11),
    _row(INTERNVL3, "GRPO", 30.84, 42.00, 68.27, 28.15, 30.50, 7.76, 23.48, 38.75, 19.49),
    _row(INTERNVL3, "GDPO", 30.11, 39.50, 71.95, 26.18, 30.90, 10.12, 23.20, 37.85, 17.46),
    _row(INTERNVL3, "MRPO", 31.94, 41.00, 71.78, 29.54, 31.60, 7.59, 24.31, 39.15, 20.42),
    _row("HuatuoGPT-Vision-34B", "", 26.15, 31.30, 9.65, 21.27, 33.60, 17.63),
)
CASCADES = (
    PublishedCascade(
        method="base", stages={Stage.EARLY: 64.0, Stage.MID: 26.4, Stage.LATE: 9.6}, far=(64.6, 70.6, 66.1, 54.5, 39.8)
    ),
    PublishedCascade(method="GRPO", stages={Stage.EARLY: 21.2}, far=(62.9, 54.5, 55.0, 55.9, 37.0)),
    PublishedCascade(method="GDPO", stages={Stage.EARLY: 21.4}, far=(58.4, 58.5, 54.5, 51.9, 36.9)),
    PublishedCascade(method="MRPO", stages={Stage.EARLY: 13.0}, far=(43.3, 51.7, 52.4, 56.0, 31.7)),
)


def micro_mean(accuracy: Mapping[str, float]) -> float:
    """Mean over the paper's questions, in per cent, from the whole numbers of correct answers behind the accuracies.

    Args:
        accuracy: set: per cent, at least one set.
    """
    num_correct = sum(round(value * SET_SIZES[name] / 100) for name, value in accuracy.items())
    return 100 * num_correct / sum(SET_SIZES[name] for name in accuracy)


def macro_mean(accuracy: Mapping[str, float]) -> float:
    """Mean over sets, in per cent."""
    return sum(accuracy.values()) / len(accuracy)
