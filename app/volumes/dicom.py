"""DICOM: CT series in any tree of files, known by content and not by name."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VolumeError
from ..hounsfield import AIR
from .dicom_names import EXTENSIONS, is_meant, is_numbered
from .read_ahead import ReadAhead
from .volume import (
    DEFAULT_OPTIONS,
    FindOptions,
    Geometry,
    NotCt,
    Ready,
    Refused,
    Scan,
    Slices,
    State,
    Volume,
    ahead_of_network,
    implausible,
    is_rigid,
    is_singular,
    the_only,
    to_int16,
)
from .walk import first_bytes, identity

if TYPE_CHECKING:
    from .dicom_arrange import Series
    from .dicom_slice import Slice

PREAMBLE, MAGIC = 128, b"DICM"  # PS3.10, 7.1
# First elements of files without a preamble: group 8, element 0, 1, 5, 8 or 16; or of the file's own header, which is
# always explicit (PS3.10, 7.1).
BARE = (
    *(bytes([8, 0, element, 0]) for element in (0, 1, 5, 8, 0x16)),
    *(bytes([2, 0, element, 0]) + vr for element, vr in ((0, b"UL"), (1, b"OB"), (2, b"UI"), (0x10, b"UI"))),
)
TILTED = (
    "its gantry was tilted, so that the mask's grid is sheared: ITK's programs, such as 3D Slicer and ITK-SNAP, do not "
    "open such a NIfTI file, and dcmqi shifts a DICOM segmentation; for these, save rtstruct"
)


class Dicom:
    """DICOM, known by the content of its files; see `Format`."""

    accepts = "DICOM"
    extensions = EXTENSIONS

    def claims(self, path: pathlib.Path, head: bytes) -> bool:
        """By the first bytes; also a file that may stand in a slice's place, since it is empty or called like one.

        A DICOMDIR only lists other files.
        """
        if path.name.upper() == "DICOMDIR":  # in small letters where a CD was mounted so
            return False
        if is_dicom(head) or path.suffix.lower() in EXTENSIONS:
            return True
        # Also a dead link, or a file of which the system tells nothing; not what is not there at all.
        is_file = path.is_file() if identity(path) else os.path.lexists(path)
        return is_file and (not any(head[:PREAMBLE]) or is_numbered(path.name))

    def find(self, files: Sequence[pathlib.Path], folder: pathlib.Path, options: FindOptions) -> list[Scan]:
        """The CT series, wherever their files lie; and what else there is, with the reason why not.

        Raises:
            InputError: the library that reads them is not installed.
        """
        if not any(_is_dicom_or_lost(path, files) for path in files):
            return []  # stray files, for which no library is needed
        try:
            from . import dicom_series  # takes 0.3 s, and only DICOM needs it
        except ImportError as error:
            line = f"{folder}: holds DICOM; install it with DICOM support: hrnet-ocr-abdomen[dicom]"
            raise InputError(line) from error
        return [_scan(series) for series in dicom_series.find_series(files, folder, options)]

    def open(self, path: pathlib.Path) -> Volume:
        """The one CT series in a file."""
        if not is_dicom(first_bytes(path)):
            raise VolumeError(f"{path}: neither NIfTI nor DICOM, or it cannot be read; copy or export it again")
        return the_only(self.find([path], path.parent, DEFAULT_OPTIONS), path).open()


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are DICOM's."""
    return head[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC or head.startswith(BARE)


def _is_dicom_or_lost(path: pathlib.Path, beside: Sequence[pathlib.Path]) -> bool:
    """Whether a file is DICOM, or seems to have been before it was damaged."""
    head = first_bytes(path)
    is_foreign = any(head[:PREAMBLE]) and path.suffix.lower() not in EXTENSIONS
    return is_dicom(head) or (not is_foreign and is_meant(path, beside))


def _scan(series: Series) -> Scan:
    state: State = Ready()
    if series.problem:
        state = Refused(f"{series.path}: {series.name}: {series.problem}")
    elif series.not_ct:
        state = NotCt(f"{series.path}: {series.name}: {series.not_ct}")
    size = 2 * sum(one.shape[0] * one.shape[1] for one in series.slices)
    return Scan(series.name, series.path, partial(open_series, series), state, series_uid=series.uid, size_bytes=size)


def open_series(series: Series) -> DicomVolume:
    """The volume of a series.

    Raises:
        VolumeError: the series is not a volume, or its size is implausible.
    """
    if series.problem or series.not_ct:
        raise VolumeError(f"{series.path}: {series.name}: {series.problem or series.not_ct}")
    first, last = series.slices[0], series.slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing_mm[1]  # along a row, from column to column
    affine[:3, 1] = first.orientation[1] * first.spacing_mm[0]
    affine[:3, 2] = (last.position - first.position) / (len(series.places) - 1)  # sheared, if the gantry was tilted
    affine[:3, 3] = first.position
    affine[:2] *= -1  # LPS -> RAS
    if is_singular(affine):
        raise VolumeError(f"{series.path}: {series.name}: its ImageOrientationPatient spans no plane; export it again")
    rows, columns = first.shape
    geometry = Geometry.of((columns, rows, len(series.places)), affine)
    warnings = [*series.warnings, *implausible(series.path, geometry)]
    if not is_rigid(affine):
        warnings.append(TILTED)
    return DicomVolume(series.path, geometry, tuple(warnings), series.slices, series.places, series.uid)


@dataclass(frozen=True)
class DicomVolume:
    """A CT series whose headers were read and found to be a volume; see `Volume`.

    Attributes:
        path: the folder, or the multi-frame file.
        geometry: stored axes are column, row and slice.
        warnings: what is odd about the series but does not stop us.
        files: its slices, in order of their position.
        places: where each slice of the volume lies among the files: 2.0 is the third one, 2.5 halfway to the fourth.
        series_uid: of the series.
    """

    path: pathlib.Path
    geometry: Geometry
    warnings: tuple[str, ...]
    files: Sequence[Slice]
    places: Sequence[float]
    series_uid: str

    def planes_of_files(self) -> list[int]:
        """For each file the slice of the volume that lies nearest."""
        places = np.asarray(self.places)
        return [int(np.abs(places - i).argmin()) for i in range(len(self.files))]

    def slices(self) -> Slices:
        """Start decoding; see `Volume.slices`."""
        return ReadAhead(self._decode(), depth=ahead_of_network(self.geometry.shape_zyx))

    def _decode(self) -> Generator[tuple[int, NDArray[np.int16]], None, None]:
        count = len(self.places)
        if self.geometry.slowest_is_z:
            for i, plane in enumerate(self._planes()):
                oriented = self.geometry.orient(plane[..., None])[0]
                yield i if self.geometry.ascends else count - 1 - i, np.ascontiguousarray(oriented)
        else:
            volume = self.geometry.orient(np.stack(list(self._planes()), axis=2))
            for z, plane in enumerate(volume):
                yield z, np.ascontiguousarray(plane)

    def _planes(self) -> Iterator[NDArray[np.int16]]:
        """Each slice of the volume (columns, rows) in HU; those between files are interpolated."""
        decoded: dict[int, NDArray[np.int16]] = {}
        for place in self.places:
            low, high = math.floor(place), math.ceil(place)
            decoded = {i: decoded[i] if i in decoded else self._hounsfield(self.files[i]) for i in (low, high)}
            if low == high:
                yield decoded[low]
            else:
                between = decoded[low] + (place - low) * (decoded[high].astype(np.float32) - decoded[low])
                yield np.rint(between).astype(np.int16)

    def _hounsfield(self, one: Slice) -> NDArray[np.int16]:
        """A slice (columns, rows) in HU; padding becomes air."""
        from .dicom_slice import stored_pixels

        try:
            stored = stored_pixels(one)
        except Exception as error:  # a decoder raises whatever damaged pixels make of it
            line = " ".join(f"{type(error).__name__}: {error}".split())
            raise VolumeError(f"{one.path}: its pixels cannot be decoded ({line}); export it again") from error
        if stored.shape != one.shape:
            raise VolumeError(
                f"{one.path}: its pixels are {stored.shape}, its header says {one.shape}; export it again"
            )
        hounsfield = to_int16(_rescaled(stored, one.slope, one.intercept or 0.0))
        if one.padding is not None:
            hounsfield[(stored >= one.padding[0]) & (stored <= one.padding[1])] = AIR
        return hounsfield.T


def _rescaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Stored values -> HU, in whole numbers where slope and intercept are."""
    if slope == 1.0 and intercept.is_integer():
        return stored.astype(np.int32) + int(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
