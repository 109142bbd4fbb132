"""The data sets: layout, license, which questions are open-ended, and where a user gets the files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mrpo.choices import OpenRule
from mrpo.errors import ConfigError

NO_EXTERNAL_JUDGE = "no external judge"  # in a row's license: its owner did not allow one


class Layout(StrEnum):
    """How a set's files are laid out; `mrpo.data.layouts` has one reader each."""

    VQA_RAD = "vqa_rad"
    SLAKE = "slake"
    PARQUET = "parquet"  # columns image, question, answer
    PARQUET_TEST = "parquet_test"  # the same, all of it test questions
    PMC_VQA = "pmc_vqa"
    VQA_MED = "vqa_med"
    MIMIC_CXR_VQA = "mimic_cxr_vqa"
    PUBLISHED = "published"  # records {image, problem, solution}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A data set repository of the Hugging Face hub."""

    repo: str
    patterns: tuple[str, ...]  # files of it that are needed


@dataclass(frozen=True, slots=True, kw_only=True)
class OsfSource:
    """A project of the Open Science Framework."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlSource:
    """Files of GitHub repositories."""

    paths: tuple[str, ...]  # below https://github.com


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSpec:
    """One data set."""

    name: str
    title: str  # for tables
    loader: Layout
    license: str
    external_judge_allowed: bool  # whether images and questions may be sent to a judge outside the user's machines
    open_rule: OpenRule
    source: str  # where a person gets it, in words
    download: HubSource | OsfSource | UrlSource | None = None  # None: nobody may fetch it unasked
    rationales: str | None = None  # MedThink's folder of this set


SETS = {
    spec.name: spec
    for spec in (
        SetSpec(
            name="vqa_rad",
            title="VQA-RAD",
            loader=Layout.VQA_RAD,
            license="CC0-1.0",
            external_judge_allowed=True,
            open_rule=OpenRule.NON_YES_NO,
            source="https://osf.io/89kps",
            download=OsfSource(node="89kps"),
            rationales="R-RAD",
        ),
        SetSpec(
            name="slake",
            title="SLAKE",
            loader=Layout.SLAKE,
            license="CC-BY-4.0",
            external_judge_allowed=True,
            open_rule=OpenRule.NON_YES_NO,
            source="https://huggingface.co/datasets/BoKelvin/SLAKE (train.json, validate.json, test.json, imgs.zip)",
            download=HubSource(repo="BoKelvin/SLAKE", patterns=("*.json", "imgs.zip")),
            rationales="R-SLAKE",
        ),
        SetSpec(
            name="pathvqa",
            title="PathVQA",
            loader=Layout.PARQUET,
            license="MIT",
            external_judge_allowed=True,
            open_rule=OpenRule.NON_YES_NO,
            source="https://huggingface.co/datasets/flaviagiammarino/path-vqa (data/*.parquet)",
            download=HubSource(repo="flaviagiammarino/path-vqa", patterns=("data/*.parquet",)),
            rationales="R-PathVQA",
        ),
        SetSpec(
            name="pmc_vqa",
            title="PMC-VQA",
            loader=Layout.PMC_VQA,
            license="CC-BY-SA-4.0",
            external_judge_allowed=True,
            open_rule=OpenRule.ALL,
            source="https://huggingface.co/datasets/xmcmic/PMC-VQA (test_clean.csv, images.zip)",
            download=HubSource(repo="xmcmic/PMC-VQA", patterns=("test_clean.csv", "images.zip")),
        ),
        SetSpec(
            name="vqa_med_2021",
            title="VQA-Med 2021",
            loader=Layout.VQA_MED,
            license="unstated; terms of ImageCLEF 2021",
            external_judge_allowed=True,
            open_rule=OpenRule.ALL,
            source="https://github.com/abachaa/VQA-Med-2021 (Task1-VQA-2021-TestSet-w-GroundTruth.zip)",
            download=UrlSource(
                paths=(
                    "abachaa/VQA-Med-2021/raw/HEAD/Task1-VQA-2021-TestSet-w-GroundTruth.zip",
                    "abachaa/VQA-Med-2021/raw/HEAD/EvaluationCode/data/resources/"
                    "Task1-VQAnswering2021-Test-ReferenceQuestions_mscoco_format_vqa.json",
                    "abachaa/VQA-Med-2021/raw/HEAD/EvaluationCode/data/resources/"
                    "Task1-VQAnswering2021-Test-ReferenceAnswers-4Evaluator.txt",
                )
            ),
        ),
        SetSpec(
            name="quilt_vqa",
            title="Quilt-VQA",
            loader=Layout.PARQUET_TEST,
            license="CC-BY-NC-ND-3.0, gated, no redistribution",
            external_judge_allowed=False,
            open_rule=OpenRule.OPEN,
            source="https://huggingface.co/datasets/wisdomik/Quilt_VQA (accept its terms, then data/*.parquet)",
            download=HubSource(repo="wisdomik/Quilt_VQA", patterns=("data/*.parquet",)),
        ),
        SetSpec(
            name="radimagenet_vqa",
            title="RadImageNet-VQA",
            loader=Layout.PARQUET_TEST,
            license="Apache-2.0; the images under the terms of RadImageNet",
            external_judge_allowed=True,
            open_rule=OpenRule.OPEN,
            source="https://huggingface.co/datasets/raidium/RadImageNet-VQA (benchmark/test-*.parquet)",
            download=HubSource(repo="raidium/RadImageNet-VQA", patterns=("benchmark/*.parquet",)),
        ),
        SetSpec(
            name="mimic_cxr_vqa",
            title="MIMIC-Ext-MIMIC-CXR-VQA",
            loader=Layout.MIMIC_CXR_VQA,
            license="PhysioNet Credentialed Health Data License 1.5.0",
            external_judge_allowed=False,
            open_rule=OpenRule.NON_YES_NO,
            source="https://physionet.org/content/mimic-ext-mimic-cxr-vqa (train.json, valid.json, test.json) and "
            "https://physionet.org/content/mimic-cxr-jpg (files/p1x/…), both with credentialed access",
        ),
        SetSpec(
            name="published",
            title="published {image, problem, solution} files",
            loader=Layout.PUBLISHED,
            license="as its source sets",
            external_judge_allowed=False,  # what is in such a file is not known here
            open_rule=OpenRule.ALL,
            source="the folder with your files; records {image, problem, solution}, images beside them",
        ),
    )
}


def set_spec(name: str) -> SetSpec:
    """The set of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SETS:
        raise ConfigError(f"data.set={name}: no such set; expected one of {', '.join(SETS)}")
    return SETS[name]
