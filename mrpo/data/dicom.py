"""DICOM files as 8-bit PNG: windowed as the file asks for, with none of its tags."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from mrpo.errors import DataError

PREFIX = slice(128, 132)  # where a DICOM file says what it is
MAGIC = b"DICM"
IDENTIFIERS = (  # beside every person's name, which has a value representation of its own
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientBirthDateInAlternativeCalendar",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientTelecomInformation",
)
MIN_WIDTH = 1.0  # of a linear window (DICOM PS3.3 C.11.2.1.2); the other functions take any width above 0

# pydicom quotes values in warnings and messages, and a value may be a name: nothing it says of one is passed on.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
TELLABLE = (InvalidDicomError, AttributeError, NotImplementedError, RuntimeError)  # speak of files, tags and decoders

# What reading a damaged or unusual file raises, beside the library's own error.
DICOM_FAULTS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # no decoder for the transfer syntax
    AttributeError,  # a tag that must be there is missing
    KeyError,
    TypeError,
    IndexError,
    ArithmeticError,
    MemoryError,
    struct.error,
)


def is_dicom(data: bytes) -> bool:
    """Whether these bytes are a DICOM file."""
    return data[PREFIX] == MAGIC


def png_of(data: bytes, label: str, *, max_pixels: int, allow_identifiers: bool) -> bytes | str:
    """A PNG of the one frame, 8 bits a channel, or what is wrong with the file.

    Rescale slope and intercept, then the first VOI LUT or window, then inversion for MONOCHROME1 (DICOM PS3.3 C.11).
    Without a window the frame's own range is used.

    Raises:
        DataError: the file names a person or tells when the patient was born, and `allow_identifiers` is false; names
            file and tags, never a value.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            named = identifiers_in(dataset)
        except DICOM_FAULTS as error:
            return _unreadable(error)
        if named and not allow_identifiers:
            raise DataError(
                f"{label}: DICOM tag {', '.join(named)} is not empty, so it may identify a patient; de-identify the "
                "files, or set data.allow_identifiers=true if that is settled (no tag is ever copied)"
            )
        try:
            return _png(dataset, max_pixels)
        except DICOM_FAULTS as error:
            return _unreadable(error)


def _png(dataset: Dataset, max_pixels: int) -> bytes | str:
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    num_pixels = int(dataset.Rows) * int(dataset.Columns)
    if num_frames != 1:
        return f"is DICOM with {num_frames} frames; export the one that is asked about"
    if num_pixels > max_pixels:
        return f"has {num_pixels} pixels, more than data.max_pixels={max_pixels}"
    if fault := window_fault(dataset):
        return fault
    out = io.BytesIO()
    Image.fromarray(eight_bits(dataset)).save(out, "PNG")
    return out.getvalue()


def identifiers_in(dataset: Dataset) -> list[str]:
    """The tags, at any depth of sequences, that may tell who the patient is.

    Those are the names of persons, physicians' too: they narrow down whose scan it is, and a de-identified file has
    none. `BurnedInAnnotation` says that the pixels hold such text.
    """
    named: dict[str, None] = {}  # in the order of the file, each once
    for element in dataset.iterall():
        tag = element.keyword or str(element.tag)
        if tag == "BurnedInAnnotation":
            found = str(element.value or "").strip().upper() == "YES"
        else:
            found = (element.VR == "PN" or tag in IDENTIFIERS) and _has_text(element.value)
        if found:
            named[tag] = None
    return list(named)


def _has_text(value: Any) -> bool:
    """Whether a value, or one of several, is more than the separators of an empty one."""
    parts = value if isinstance(value, MultiValue) else [value]
    return any(part is not None and str(part).strip(" ^=\\\0") for part in parts)


def window_fault(dataset: Dataset) -> str | None:
    """Why the first window cannot be applied; None when it can, or a table or no window at all stands in its place."""
    width = dataset.get("WindowWidth")
    if dataset.get("VOILUTSequence") or dataset.get("WindowCenter") is None or width is None:
        return None
    first = float(width[0] if isinstance(width, MultiValue) else width)
    linear = str(dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"
    if first >= MIN_WIDTH if linear else first > 0:
        return None
    return (
        f"is DICOM whose window is unusable: WindowWidth is {first:g}, expected {'1 or more' if linear else 'above 0'}"
    )


def eight_bits(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """The frame as [rows, columns] or [rows, columns, 3] uint8."""
    pixels = pixel_array(dataset)
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return _scaled(pixels, 0.0, float(2 ** int(dataset.BitsStored) - 1))
    values = np.asarray(apply_modality_lut(pixels, dataset))
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        low, high = 0.0, float(2 ** int(table.LUTDescriptor[2]) - 1)
        values = apply_voi_lut(values, dataset, prefer_lut=True)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # What the window makes of a value far below and far above it is the range that it maps to.
        far = np.array([[-1e12, 1e12]])
        low, high = (float(edge) for edge in apply_voi_lut(far, dataset, prefer_lut=False)[0])
        values = apply_voi_lut(values, dataset, prefer_lut=False)
    else:
        low, high = float(values.min()), float(values.max())
    scaled = _scaled(values, low, high)
    return 255 - scaled if kind == "MONOCHROME1" else scaled


def _scaled(values: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Values from `low` … `high` as 0 … 255; a flat image is black."""
    shares = (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)
    return np.round(np.clip(shares, 0.0, 1.0) * 255).astype(np.uint8)


def _unreadable(error: BaseException) -> str:
    said = str(error).strip().split("\n")[0] if isinstance(error, TELLABLE) else ""
    return f"is DICOM that cannot be read ({type(error).__name__}{': ' if said else ''}{said})"
