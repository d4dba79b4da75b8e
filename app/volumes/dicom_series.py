"""DICOM headers -> series that are volumes: what belongs together, in which order, and what is wrong with it.

No public reader survives everything that scanners and archives produce, so nothing here relies on file names, instance
numbers or the number of files. Slices are grouped by series, orientation, size, spacing and image type, and sorted by
their position along the normal of the slices (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import hashlib
import io
import pathlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    *("PerFrameFunctionalGroupsSequence",),
]
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}
FEWEST_SLICES = 2  # one has no distance to the next
SAME_MM = 0.01  # positions nearer than this are one
GAP_SHARE = 0.05  # by which a distance of slices may differ from the others; scanners round to 0.1 mm
LINE_MM = 1.0  # by which a slice may lie beside the line that the others' corners form


class SliceError(Exception):
    """A header lacks what a slice of a volume needs; `find_series` makes a line of it."""


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

    @property
    def along_normal(self) -> float:
        """Its position along the normal of the slices, mm."""
        return float(np.dot(np.cross(self.orientation[0], self.orientation[1]), self.position))


@dataclass(frozen=True)
class Series:
    """Slices that belong together, or what is wrong with them.

    Attributes:
        name: patient-safe: the series number and a hash of the series UID, and a counter where there are several parts.
        uid: the series UID, or the folder where that is empty.
        path: the folder, or the file of a multi-frame image.
        slices: in order of their position.
        problem: why they are no volume; None if they are one.
        not_ct: why nobody would segment them; None if they are CT.
        warnings: what is odd about them but does not stop us.
    """

    name: str
    uid: str
    path: pathlib.Path
    slices: tuple[Slice, ...] = ()
    problem: str | None = None
    not_ct: str | None = None
    warnings: tuple[str, ...] = ()


class BoundedFile(io.BufferedReader):
    """A file that never reads beyond its end: a damaged length would make Python take memory for all of it first."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, all that is left without one."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def find_series(paths: Sequence[pathlib.Path]) -> list[Series]:
    """The series that these DICOM files hold, in order of name; those that cannot be segmented too, with the reason."""
    parts: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    others: dict[str, Series] = {}
    for path in paths:
        try:
            with warnings.catch_warnings(action="ignore"), BoundedFile(path) as file:  # about values of no interest
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=True)
            uid, number = _series_of(header, path)
            reason = _no_ct(header)
            if reason:
                others.setdefault(f"{uid}{reason}", Series(_name(number, uid), uid, path.parent, not_ct=reason))
                continue
            for one in _slices_of(header, path, uid, number):
                parts[one.series, one.part].append(one)
        except Exception as error:  # pydicom raises whatever a damaged header makes of it
            kind = "" if isinstance(error, SliceError) else f"{type(error).__name__}: "
            line = f"cannot be read as a CT slice ({kind}{error}); export it again"
            others[str(path)] = Series(path.name, str(path), path, problem=" ".join(line.split()))
    found = [series for slices in parts.values() for series in arrange(slices)]
    return _distinct_names([*found, *others.values()])


def _series_of(header: pydicom.Dataset, path: pathlib.Path) -> tuple[str, int]:
    uid = str(header.get("SeriesInstanceUID") or path.parent)
    return uid, int(header.get("SeriesNumber") or 0)


def _name(number: int, uid: str) -> str:
    return f"series{number:03d}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def _distinct_names(found: Iterable[Series]) -> list[Series]:
    """The same with a counter added to names that several have."""
    by_name: dict[str, list[Series]] = defaultdict(list)
    for series in found:
        by_name[series.name].append(series)
    named = []
    for name, several in sorted(by_name.items()):
        if len(several) == 1:
            named += several
        else:
            named += [replace(series, name=f"{name}_{i}") for i, series in enumerate(several, 1)]
    return named


def _no_ct(header: pydicom.Dataset) -> str | None:
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


def _slices_of(header: pydicom.Dataset, path: pathlib.Path, uid: str, number: int) -> list[Slice]:
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
    )


def _stored(value: Any, header: pydicom.Dataset) -> int:  # noqa: ANN401 (bytes or int, as pydicom guesses)
    """A stored pixel value, signed if the pixels are: implicit files leave that open, and it is read as unsigned."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    bits = int(header.get("BitsAllocated") or 16)
    signed = bool(header.get("PixelRepresentation")) and number >= 1 << (bits - 1)
    return number - (1 << bits) if signed else number


def arrange(slices: Sequence[Slice]) -> list[Series]:
    """Sort slices of one series and part into volumes: one, or several if each position occurs more than once."""
    first = slices[0]
    is_multi_frame = first.frame is not None
    series = Series(
        _name(first.number, first.series), first.series, first.path if is_multi_frame else first.path.parent
    )
    ordered = sorted(slices, key=lambda one: (one.along_normal, one.acquisition, one.instance))
    stacks: list[list[Slice]] = []
    doubles = 0
    for one in ordered:
        here = [stack for stack in stacks if abs(stack[-1].along_normal - one.along_normal) < SAME_MM]
        if any(_same_pixels(stack[-1], one) for stack in here):
            doubles += 1
            continue
        free = [stack for stack in stacks if stack not in here]
        # Of its own acquisition if there is one; scanners that count every slice as an acquisition have none.
        fitting = [stack for stack in free if stack[-1].acquisition == one.acquisition] or free
        if fitting:
            min(fitting, key=lambda stack: stack[-1].along_normal).append(one)
        else:
            stacks.append([one])
    twice = (f"{doubles} slices occur twice; one of each was used",) if doubles else ()
    return [
        replace(series, slices=tuple(stack), problem=_problem(stack), warnings=(*twice, *_oddities(stack)))
        for stack in stacks
    ]


def _same_pixels(one: Slice, other: Slice) -> bool:
    """Whether two slices at one position are copies of each other."""
    if one.path == other.path:
        return one.frame == other.frame
    return bool(np.array_equal(stored_pixels(one), stored_pixels(other)))


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


def _problem(stack: Sequence[Slice]) -> str | None:
    """Why these slices, in order of their position, are no volume; None if they are one."""
    if len(stack) < FEWEST_SLICES:
        return f"{len(stack)} slices, expected {FEWEST_SLICES} or more"
    places = np.array([one.along_normal for one in stack])
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > GAP_SHARE * usual)
    if odd.size:
        where = ", ".join(f"{places[i]:.1f} to {places[i + 1]:.1f}" for i in odd[:3]) + (" ..." if odd.size > 3 else "")
        return (
            f"slices are {usual:.4g} mm apart, but not at {where} mm along their normal ({odd.size} places); "
            "send the missing slices, or export it with one distance"
        )
    corners = np.array([one.position for one in stack])
    line = corners[0] + np.linspace(0, 1, len(stack))[:, None] * (corners[-1] - corners[0])
    if np.abs(corners - line).max() > LINE_MM:
        return "its slices are shifted against each other; expected them on one line, export it again"
    return None


def _oddities(stack: Sequence[Slice]) -> list[str]:
    """Warnings about slices that are a volume."""
    if any(one.intercept is None for one in stack):
        return ["no rescale intercept; stored values were taken for Hounsfield units"]
    return []
