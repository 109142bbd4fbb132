"""DICOM: what the window makes of values, what is refused, and that no tag gets through."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

from mrpo.data.dicom import png_of
from mrpo.errors import DataError
from tests.unit.prepared_sets import rows_of, run, write_image, write_json


def scan(pixels: npt.ArrayLike = ((0, 1000), (2000, 4000)), **tags: Any) -> bytes:
    """A small file, 12 of 16 bits, unsigned, without a window unless one is given."""
    values = np.asarray(pixels, dtype=np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("scan", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PatientID = "pseudonym-17"
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset)
    return out.getvalue()


def pixels_of(data: bytes, **settings: Any) -> list[list[int]]:
    png = png_of(data, "scan.dcm", **{"max_pixels": 100, "allow_identifiers": False, **settings})
    assert isinstance(png, bytes), png
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "L"
        return np.asarray(image).tolist()


def fault_of(data: bytes, **settings: Any) -> str:
    fault = png_of(data, "scan.dcm", **{"max_pixels": 100, "allow_identifiers": False, **settings})
    assert isinstance(fault, str)
    return fault


def test_without_a_window_the_frames_own_range_is_used() -> None:
    assert pixels_of(scan()) == [[0, 64], [128, 255]]  # 255 × 1000/4000 = 63.75, 255 × 2000/4000 = 127.5 → 128


def test_a_window_cuts_and_spreads() -> None:
    # Centre 1500, width 1001: 1000 (≤ c − ½ − (w − 1)/2 = 999.5 is black) gives 0.0005, 2000 gives more than white.
    assert pixels_of(scan(WindowCenter=1500, WindowWidth=1001)) == [[0, 0], [255, 255]]
    # Width 2001: ((1000 − 1499.5)/2000 + ½) × 255 = 63.8 and ((2000 − 1499.5)/2000 + ½) × 255 = 191.3.
    assert pixels_of(scan(WindowCenter=1500, WindowWidth=2001)) == [[0, 64], [191, 255]]


def test_the_first_of_several_windows_counts() -> None:
    assert pixels_of(scan(WindowCenter=[1500, 0], WindowWidth=[2001, 10])) == [[0, 64], [191, 255]]


def test_the_window_is_in_rescaled_units() -> None:
    # Slope 2, intercept −1000: the values become −1000, 1000, 3000, 7000.
    data = scan(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000.5, WindowWidth=4001)
    assert pixels_of(data) == [[0, 128], [255, 255]]  # (1000 − 1000)/4000 + ½ = ½ → 127.5 → 128


def test_monochrome1_is_inverted() -> None:
    assert pixels_of(scan(PhotometricInterpretation="MONOCHROME1")) == [[255, 191], [127, 0]]


def test_a_lookup_table_goes_before_a_window() -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]  # entries, first value mapped, bits
    table.add_new("LUTData", "US", [0, 10, 20, 255])
    data = scan([[0, 1], [2, 9]], VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    assert pixels_of(data) == [[0, 10], [20, 255]]


def test_a_flat_frame_is_black() -> None:
    assert pixels_of(scan([[7, 7], [7, 7]])) == [[0, 0], [0, 0]]


def test_no_tag_is_copied() -> None:
    data = scan(PatientName="Doe^Jane", PatientBirthDate="19700101", StudyDescription="Chest, Prof. Secret")
    png = png_of(data, "scan.dcm", max_pixels=100, allow_identifiers=True)
    assert isinstance(png, bytes)
    assert not any(word in png for word in (b"Doe", b"1970", b"Secret", b"pseudonym"))
    with Image.open(io.BytesIO(png)) as image:
        assert image.info == {}


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("PatientName", "Doe^Jane"),
        ("PatientBirthDate", "19700101"),
        ("OtherPatientNames", "Roe"),
        ("OtherPatientNames", ["", "Roe"]),
        ("PatientMotherBirthName", "Roe"),
        ("PatientBirthTime", "120000"),
        ("ResponsiblePerson", "Roe^Richard"),
        ("ReferringPhysicianName", "House^Gregory"),
        ("PatientAddress", "1 Street"),
        ("BurnedInAnnotation", "YES"),
    ],
)
def test_files_that_tell_who_the_patient_is_are_refused(tag: str, value: str | list[str]) -> None:
    with pytest.raises(
        DataError, match=rf"^scan\.dcm: DICOM tag {tag} is not empty.*data\.allow_identifiers"
    ) as caught:
        pixels_of(scan(**{tag: value}))
    secret = value if isinstance(value, str) else value[-1]
    assert secret == "YES" or secret not in str(caught.value)
    assert pixels_of(scan(**{tag: value}), allow_identifiers=True) == [[0, 64], [128, 255]]


def test_a_name_deep_in_sequences_is_found_and_all_tags_are_named() -> None:
    inner, outer = Dataset(), Dataset()
    inner.PersonName = "Doe^Jane"
    outer.PersonIdentificationCodeSequence = [Dataset(), inner]
    private = Dataset()
    private.add_new((0x0011, 0x0010), "LO", "MAKER")
    private.add_new((0x0011, 0x1001), "PN", "Doe^Jane")
    data = scan(RequestAttributesSequence=[outer], ReferencedStudySequence=[private], PatientBirthDate="19700101")
    named = r"^scan\.dcm: DICOM tag \(0011,1001\), PatientBirthDate, PersonName is not empty"
    with pytest.raises(DataError, match=named) as caught:
        pixels_of(data)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_a_window_without_width_is_said_to_be_unusable(width: float) -> None:
    fault = f"is DICOM whose window is unusable: WindowWidth is {width:g}, expected 1 or more"
    assert fault_of(scan(WindowCenter=1500, WindowWidth=width)) == fault
    assert fault_of(scan(WindowCenter=[1500, 0], WindowWidth=[width, 10])) == fault


def test_a_sigmoid_window_may_be_narrow_and_not_empty() -> None:
    # 4095 / (1 + e^(−4 (x − 1000) / 0.5)): nothing, half, all, all of the range that it maps to.
    assert pixels_of(scan(WindowCenter=1000, WindowWidth=0.5, VOILUTFunction="SIGMOID")) == [[0, 128], [255, 255]]
    fault = fault_of(scan(WindowCenter=1000, WindowWidth=0, VOILUTFunction="SIGMOID"))
    assert fault == "is DICOM whose window is unusable: WindowWidth is 0, expected above 0"


@pytest.mark.parametrize("value", ["", " ", "^^"])
def test_an_empty_name_is_none(value: str) -> None:
    assert pixels_of(scan(PatientName=value)) == [[0, 64], [128, 255]]


def test_what_cannot_be_shown_is_said() -> None:
    assert fault_of(scan(NumberOfFrames=3)) == "is DICOM with 3 frames; export the one that is asked about"
    assert fault_of(scan(), max_pixels=3) == "has 4 pixels, more than data.max_pixels=3"
    whole = scan()
    assert fault_of(whole[:-2]).startswith("is DICOM that cannot be read (")
    assert fault_of(whole[:150]).startswith("is DICOM that cannot be read (")


def test_every_cut_and_many_changed_bytes_are_read_or_explained() -> None:
    whole = scan(WindowCenter=1500, WindowWidth=2001)
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole[: int(rng.integers(132, len(whole) + 1))])
        for place in rng.integers(132, len(data) + 1, size=3):
            if place < len(data):
                data[place] = int(rng.integers(256))
        outcome = png_of(bytes(data), "scan.dcm", max_pixels=100, allow_identifiers=True)
        assert isinstance(outcome, bytes) or outcome.startswith(("is DICOM", "has "))


def test_a_missing_decoder_is_said() -> None:
    dataset = pydicom.dcmread(io.BytesIO(scan()))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"no such stream"])
    dataset["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset)
    assert fault_of(out.getvalue()).startswith("is DICOM that cannot be read (")


def test_a_set_of_dicom_files_becomes_png(tmp_path: Path) -> None:
    source = tmp_path / "hospital"
    rows = [
        {"image": "ct/scan.dcm", "problem": "Which organ?", "solution": "lung"},
        {"image": "x.png", "problem": "Which organ?", "solution": "heart"},
    ]
    write_json(source / "test.json", rows)
    write_image(source / "x.png", 1)
    (source / "ct").mkdir()
    noisy = np.random.default_rng(0).integers(0, 4096, (32, 32))
    (source / "ct" / "scan.dcm").write_bytes(scan(noisy))
    run(source, tmp_path / "out", "published")
    assert [row["image"] for row in rows_of(tmp_path / "out", "test")] == ["images/ct/scan.png", "images/x.png"]
    (source / "ct" / "scan.dcm").write_bytes(scan(noisy, PatientName="Doe^Jane"))
    with pytest.raises(DataError, match=rf"^{source}/test\.json, row 1: image ct/scan\.dcm: DICOM tag PatientName"):
        run(source, tmp_path / "other", "published", max_bad_rows=9)
    assert not (tmp_path / "other").exists()
