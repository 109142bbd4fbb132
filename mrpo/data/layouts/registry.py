"""The reader of each layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mrpo.data.layouts import mimic_cxr_vqa, parquet, pmc_vqa, published, slake, vqa_med, vqa_rad
from mrpo.data.rows import BadRow, SourceRow
from mrpo.data.sets import Layout
from mrpo.data.source import SourceTree

Reader = Callable[[SourceTree], Iterator[SourceRow | BadRow]]

READERS: dict[Layout, Reader] = {
    Layout.VQA_RAD: vqa_rad.read,
    Layout.SLAKE: slake.read,
    Layout.PARQUET: parquet.read,
    Layout.PARQUET_TEST: parquet.read_test,
    Layout.PMC_VQA: pmc_vqa.read,
    Layout.VQA_MED: vqa_med.read,
    Layout.MIMIC_CXR_VQA: mimic_cxr_vqa.read,
    Layout.PUBLISHED: published.read,
}
