"""What a DICOM file holds: slices of a CT, as their header tells, and their pixels; or something else."""

from __future__ import annotations

import io
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian


@dataclass(frozen=True)
class Slice:
    """One slice of a CT, as its header tells.

    Attributes:
        path: the file.
        frame: its number in a multi-frame file; None in a file of one slice.
        frames: how many the file has.
        series: its series UID, or the folder where that is empty.
        number: of the series.
        identity: values of `IDENTITY`, comparable.
        kind: image type.
        shape: rows and columns.
        spacing_mm: distance of rows and of columns.
        orientation: (2, 3), directions of rows and of columns in patient LPS, of length 1.
        position: of the first pixel's centre, in patient LPS, mm.
        marks: values of `MARK_NAMES`; empty where the header has none.
        slope: of stored values to HU.
        intercept: likewise; None where the file gives none.
        padding: lowest and highest stored value that is not a measurement; None without padding.
        bits: of a stored value, sign included, as BitsStored says; those above are no part of it. None: all are.
        accession: number that the hospital gave the study; may be empty.
        unit: of the rescaled values, as RescaleType says; may be empty.
        location: along the table, as SliceLocation says, mm; None where it says nothing.
    """

    path: pathlib.Path
    frame: int | None
    frames: int
    series: str
    number: int
    identity: tuple[str, ...]
    kind: tuple[str, ...]
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    marks: tuple[str, ...]
    slope: float
    intercept: float | None
    padding: tuple[int, int] | None
    bits: int | None = None
    accession: str = ""
    unit: str = ""
    location: float | None = None

    @property
    def has_uid(self) -> bool:
        """Whether its file names its series."""
        return self.series != str(self.path.parent)


class BoundedFile(io.BufferedReader):
    """A file that never reads beyond its end: a damaged length would make Python take memory for all of it first."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(io.FileIO(str(path)))  # pydicom puts its name into messages
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, all that is left without one."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@dataclass(frozen=True)
class OtherObject:
    """What a DICOM file is if nobody would segment it.

    Attributes:
        path: the file.
        series: its series UID, or the folder where that is empty.
        number: of the series.
        reason: what it is.
    """

    path: pathlib.Path
    series: str
    number: int
    reason: str


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read as a CT slice.

    Attributes:
        path: the file.
        reason: a few words.
        is_dicom: whether its first bytes are DICOM's.
        series: the UID of the series that it names; None where it names none.
        is_foreign: whether its first bytes are something else's.
    """

    path: pathlib.Path
    reason: str
    is_dicom: bool
    series: str | None
    is_foreign: bool = False


def stored_pixels(one: Slice) -> NDArray[Any]:
    """The decoded pixels of a slice, (rows, columns), as they are stored.

    pydicom takes those of JPEG-LS and JPEG 2000 for as wide as their stream says. Encoders also write 12 bits as 16, of
    which the upper ones are zeros, whatever the sign, or an overlay.
    """
    pixels = _decoded(one)
    unused = 0 if one.bits is None else 8 * pixels.itemsize - one.bits
    return pixels << unused >> unused if unused > 0 else pixels


def _decoded(one: Slice) -> NDArray[Any]:
    if one.frame is None:
        with BoundedFile(one.path) as file:
            image = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in image.file_meta:  # an old file without a header of its own
            implicit, little = image.original_encoding
            plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            image.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
        single: NDArray[Any] = pydicom.pixels.pixel_array(image, correct_unused_bits=False)
        return single
    with BoundedFile(one.path) as file:  # no other frame is read
        frame: NDArray[Any] = pydicom.pixels.pixel_array(file, index=one.frame, correct_unused_bits=False)
    return frame
