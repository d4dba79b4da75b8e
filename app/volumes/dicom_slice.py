"""One slice of a CT as its DICOM header tells, and its pixels."""

from __future__ import annotations

import io
import pathlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

TAGS = [
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "AcquisitionNumber"),
    *("InstanceNumber", "ImageType", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "NumberOfFrames"),
    *("ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "SamplesPerPixel", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence", "BitsAllocated"),
    *("PerFrameFunctionalGroupsSequence", "AccessionNumber"),
]
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}


class SliceError(Exception):
    """A header lacks what a slice of a volume needs; `find_series` makes a line of that."""


@dataclass(frozen=True)
class Slice:
    """One slice of a CT, as its header tells.

    Attributes:
        path: the file.
        frame: its number in a multi-frame file; None in a file of one slice.
        series: its series UID, or the folder where that is empty.
        number: of the series.
        part: what else tells volumes of one series apart: orientation, size, spacing, image type.
        shape: rows and columns.
        spacing_mm: distance of rows and of columns.
        orientation: (2, 3), directions of rows and of columns in patient LPS.
        position: of the first pixel's centre, in patient LPS, mm.
        acquisition: acquisition number.
        instance: instance number.
        slope: of stored values to HU.
        intercept: likewise; None where the file gives none.
        padding: lowest and highest stored value that is no measurement; None without padding.
        accession: number that the hospital gave the study; may be empty.
    """

    path: pathlib.Path
    frame: int | None
    series: str
    number: int
    part: tuple[Any, ...]
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    acquisition: int
    instance: int
    slope: float
    intercept: float | None
    padding: tuple[int, int] | None
    accession: str = ""

    @property
    def along_normal(self) -> float:
        """Its position along the normal of the slices, mm."""
        return float(np.dot(np.cross(self.orientation[0], self.orientation[1]), self.position))


class BoundedFile(io.BufferedReader):
    """A file that never reads beyond its end: a damaged length would make Python take memory for all of it first."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, all that is left without one."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def read_header(path: pathlib.Path) -> pydicom.Dataset:
    """The elements of a file that tell what it is and where it lies; its pixels are not read."""
    with warnings.catch_warnings(action="ignore"), BoundedFile(path) as file:  # about values of no interest
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=True)


def series_of(header: pydicom.Dataset, path: pathlib.Path) -> tuple[str, int]:
    """The UID of a file's series, or the folder where that is empty; and the series' number."""
    return str(header.get("SeriesInstanceUID") or path.parent), int(header.get("SeriesNumber") or 0)


def why_no_ct(header: pydicom.Dataset) -> str | None:
    """Why nobody would segment this; None if it is CT."""
    if not header.get("Modality") and not header.get("SOPClassUID"):
        return "no image"
    if header.get("Modality") != "CT":
        return f"modality {header.get('Modality') or 'unknown'}, not CT"
    if str(header.get("SOPClassUID")) not in CT_CLASSES:
        return "a secondary capture or another object, no CT image"
    if "LOCALIZER" in (header.get("ImageType") or ()):
        return "a localizer"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "a colour image"
    return None


def slices_of(header: pydicom.Dataset, path: pathlib.Path, uid: str, number: int) -> list[Slice]:
    """The slices of one file; a multi-frame file has one per frame."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [_slice(header, (header,), path, None, uid, number)]
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    return [_slice(header, (*_groups(frame), *_groups(shared)), path, i, uid, number) for i, frame in enumerate(frames)]


def _groups(functional_groups: pydicom.Dataset) -> list[pydicom.Dataset]:
    """The first item of every sequence in a functional group."""
    return [element.value[0] for element in functional_groups if element.VR == "SQ" and element.value]


def _slice(
    header: pydicom.Dataset,
    groups: Sequence[pydicom.Dataset],
    path: pathlib.Path,
    frame: int | None,
    uid: str,
    number: int,
) -> Slice:
    def first(name: str, default: Any = None) -> Any:  # noqa: ANN401 (whatever DICOM has)
        values = [group.get(name) for group in (*groups, header) if group.get(name) is not None]
        return values[0] if values else default

    missing = [name for name in GEOMETRY if first(name) is None]
    if missing:
        raise SliceError(f"no {', no '.join(missing)}")
    orientation = np.array(first("ImageOrientationPatient"), np.float64).reshape(2, 3)
    position = np.array(first("ImagePositionPatient"), np.float64).reshape(3)
    rows_mm, columns_mm = (float(mm) for mm in first("PixelSpacing"))
    if not (np.isfinite(orientation).all() and np.isfinite(position).all()) or min(rows_mm, columns_mm) <= 0:
        raise SliceError("position, orientation or spacing are not numbers")
    shape = int(header.Rows), int(header.Columns)
    kind = tuple(first("FrameType") or header.get("ImageType") or ())
    padding, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if padding is not None:
        bounds = sorted((_stored(padding, header), _stored(padding if limit is None else limit, header)))
    intercept = first("RescaleIntercept")
    return Slice(
        path=path,
        frame=frame,
        series=uid,
        number=number,
        part=(tuple(orientation.round(2).ravel() + 0.0), shape, (round(rows_mm, 4), round(columns_mm, 4)), kind),
        shape=shape,
        spacing_mm=(rows_mm, columns_mm),
        orientation=orientation,
        position=position,
        acquisition=int(header.get("AcquisitionNumber") or 0),
        instance=int(header.get("InstanceNumber") or 0),
        slope=float(first("RescaleSlope", 1.0)),
        intercept=None if intercept is None else float(intercept),
        padding=None if padding is None else (bounds[0], bounds[1]),
        accession=str(header.get("AccessionNumber") or ""),
    )


def _stored(value: Any, header: pydicom.Dataset) -> int:  # noqa: ANN401 (bytes or int, as pydicom guesses)
    """A stored pixel value, signed if the pixels are: implicit files leave that open, and it is read as unsigned."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    bits = int(header.get("BitsAllocated") or 16)
    signed = bool(header.get("PixelRepresentation")) and number >= 1 << (bits - 1)
    return number - (1 << bits) if signed else number


def stored_pixels(one: Slice) -> NDArray[Any]:
    """The decoded pixels of a slice, (rows, columns), as they are stored."""
    if one.frame is None:
        with BoundedFile(one.path) as file:
            image = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in image.file_meta:  # an old file without a header of its own
            implicit, little = image.original_encoding
            plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            image.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
        single: NDArray[Any] = pydicom.pixels.pixel_array(image)
        return single
    with BoundedFile(one.path) as file:
        frame: NDArray[Any] = pydicom.pixels.pixel_array(file, index=one.frame)  # does not read the others
    return frame
