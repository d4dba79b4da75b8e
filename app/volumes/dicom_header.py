"""The header of a DICOM file -> its slices, or why it has none."""

from __future__ import annotations

import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from ..hounsfield import BODY, BONE
from .dicom import PREAMBLE, is_dicom
from .dicom_fields import CT_CLASSES, GEOMETRY, IDENTITY, MARK_NAMES, MARKS, OTHER_UNITS, TAGS, TIMES
from .dicom_slice import BoundedFile, OtherObject, Slice, Unreadable
from .walk import HEAD_BYTES

NO_DATE = "00010101"  # goes with a time that has no date
LARGEST_NUMBER = 2**31 - 1000  # of a series, PS3.5, 6.2, and room for the numbers of what is made from it
SMALLEST_SINE = 0.1  # between the directions of rows and columns, which are at right angles in a sound file
# Sequences of a functional group that tell of other images. So may private ones, such as Philips' copy of a header.
OF_OTHER_IMAGES = ("ReferencedImageSequence", "DerivationImageSequence", "ConversionSourceAttributesSequence")
FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
TAG_OF = {name: pydicom.tag.Tag(name) for name in (*TAGS, "FrameType", "DimensionIndexValues")}
TAGS_TO_READ = [TAG_OF[name] for name in TAGS]


class SliceError(Exception):
    """A header lacks what a slice of a volume needs; `read_slices` makes an `Unreadable` of it."""


class NotDicomError(SliceError):
    """A file does not begin as DICOM does."""


class ForeignError(NotDicomError):
    """A file begins as something else."""


def read_slices(path: pathlib.Path) -> list[Slice] | OtherObject | Unreadable:
    """The slices of a file: one, or one per frame of a multi-frame file; or why it has none."""
    header = pydicom.Dataset()
    try:
        with warnings.catch_warnings(action="ignore"):  # about values of no interest
            header = _read_header(path)
            series = str(header.get("SeriesInstanceUID") or path.parent)
            number = _series_number(header.get("SeriesNumber"))
            if reason := _why_not_ct(header):
                return OtherObject(path, series, number, reason)
            slices = _slices(header, path, series, number)
            if reason := _why_not_hounsfield(slices):
                return OtherObject(path, series, number, reason)
            return slices
    except Exception as error:  # pydicom raises whatever a damaged header makes of it
        is_dicom, is_foreign = not isinstance(error, OSError | NotDicomError), isinstance(error, ForeignError)
        return Unreadable(path, _why_unreadable(error), is_dicom, header.get("SeriesInstanceUID"), is_foreign)


def _why_unreadable(error: Exception) -> str:
    """A few words for what went wrong while a header was read."""
    if isinstance(error, FileNotFoundError):
        return "a broken link"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    kind = "" if isinstance(error, SliceError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def _read_header(path: pathlib.Path) -> pydicom.Dataset:
    """The elements of a file that tell what it is and where it lies; its pixels are not read."""
    if path.exists() and not path.is_file():
        raise NotDicomError("not a regular file")
    with BoundedFile(path) as file:
        head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
        if not is_dicom(head):
            if any(head[:PREAMBLE]):
                raise ForeignError("not DICOM")
            raise NotDicomError("zeros" if head else "0 bytes")
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS_TO_READ, force=True)


def _why_not_ct(header: pydicom.Dataset) -> str | None:
    """Why nobody would segment this; None if it is CT.

    Raises:
        SliceError: the header ends before it tells.
    """
    modality = header.get("Modality")
    sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if not modality:
        if sop_class in CT_CLASSES or sop_class not in pydicom.uid.UID_dictionary:  # it may end early
            raise SliceError("no Modality")
        return "no image"
    if str(modality).upper() != "CT":
        return f"modality {modality}, not CT"
    if sop_class and sop_class not in CT_CLASSES:
        return "a secondary capture or another object, no CT image"
    for word, what in (("LOCALIZER", "a localizer"), ("SCREEN SAVE", "a picture of the screen")):
        if word in (header.get("ImageType") or ()):
            return what
    if int(header.get("SamplesPerPixel") or 1) != 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR":
        return "a colour image"
    if "SECONDARY" in (header.get("ImageType") or ()) and not any(name in header for name in (*GEOMETRY, *FRAMES)):
        return "an image without a place, such as a protocol or a picture of the screen"
    return None


def _why_not_hounsfield(slices: Sequence[Slice]) -> str | None:
    """What the values are, if they are no Hounsfield units; None if they may be."""
    units = {one.unit for one in slices} & set(OTHER_UNITS)
    return f"values in {units.pop()} (RescaleType), not Hounsfield units" if units else None


def _series_number(value: object) -> int:
    """The number of a series; 0 where there is none, or none that DICOM allows, since nothing depends on it."""
    try:
        number = int(str(value or 0))
    except ValueError:
        return 0
    return number if abs(number) < LARGEST_NUMBER else 0


def _slices(header: pydicom.Dataset, path: pathlib.Path, series: str, number: int) -> list[Slice]:
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        count = int(header.get("NumberOfFrames") or 1)
        if count > 1:  # as some cone-beam scanners write them
            raise SliceError(f"{count} frames without a place each")
        return [_slice(header, (header,), path, None, series, number)]
    if (count := int(header.get("NumberOfFrames") or len(frames))) != len(frames):  # the others' places are not known
        raise SliceError(f"{count} frames, but places of {len(frames)}")
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    common = (*_groups(shared), header)
    return [_slice(header, (*_groups(frame), *common), path, i, series, number) for i, frame in enumerate(frames)]


def _groups(functional_groups: pydicom.Dataset) -> list[pydicom.Dataset]:
    """The first item of every sequence in a functional group that tells of the frame itself."""
    own = (one for one in functional_groups if not one.tag.is_private and one.keyword not in OF_OTHER_IMAGES)
    return [element.value[0] for element in own if element.VR == "SQ" and element.value]


def _slice(
    header: pydicom.Dataset,
    groups: Sequence[pydicom.Dataset],
    path: pathlib.Path,
    frame: int | None,
    series: str,
    number: int,
) -> Slice:
    def first(name: str, default: Any = None) -> Any:  # noqa: ANN401 (whatever DICOM has)
        tag = TAG_OF[name]
        values = (group[tag].value for group in groups if tag in group)
        return next((value for value in values if value is not None), default)

    missing = [name for name in GEOMETRY if first(name) is None]
    if missing:
        raise SliceError(f"no {', no '.join(missing)}")
    rows_mm, columns_mm = _numbers("PixelSpacing", first("PixelSpacing"), 2)
    if min(rows_mm, columns_mm) <= 0:
        raise SliceError(f"PixelSpacing is {rows_mm}, {columns_mm}")
    (slope,) = _numbers("RescaleSlope", first("RescaleSlope", 1.0), 1)
    (intercept,) = _numbers("RescaleIntercept", first("RescaleIntercept", 0.0), 1)
    if not slope:
        raise SliceError("RescaleSlope is 0")
    rows, columns = int(header.Rows), int(header.Columns)
    if not (rows and columns):
        raise SliceError(f"{rows} rows and {columns} columns")
    return Slice(
        path=path,
        frame=frame,
        frames=int(header.get("NumberOfFrames") or 1),
        series=series,
        number=number,
        identity=tuple(sys.intern(_comparable(name, header.get(name))) for name in IDENTITY),
        kind=tuple(sys.intern(str(word)) for word in first("FrameType") or header.get("ImageType") or ()),
        shape=(rows, columns),
        spacing_mm=(rows_mm, columns_mm),
        orientation=_directions(_numbers("ImageOrientationPatient", first("ImageOrientationPatient"), 6)),
        position=np.array(_numbers("ImagePositionPatient", first("ImagePositionPatient"), 3)),
        marks=_marks(first, frame),
        slope=slope,
        intercept=None if first("RescaleIntercept") is None else intercept,
        padding=_padding(header, slope, intercept),
        bits=header.get("BitsStored"),
        accession=str(header.get("AccessionNumber") or ""),
        unit=sys.intern(_text(first("RescaleType")).upper()),
        location=_location(first("SliceLocation")),
    )


def _numbers(name: str, value: Any, count: int) -> list[float]:  # noqa: ANN401 (whatever pydicom makes of it)
    """The values of an element that has to have so many numbers.

    Raises:
        SliceError: it has not.
    """
    try:
        numbers = np.array(value, np.float64).reshape(count)
    except (TypeError, ValueError) as error:  # such as a decimal comma
        raise SliceError(f"{name} is {value}, expected {count} numbers") from error
    if not np.isfinite(numbers).all():
        raise SliceError(f"{name} is {value}, expected finite numbers")
    return [float(number) for number in numbers]


def _location(value: Any) -> float | None:  # noqa: ANN401 (whatever pydicom makes of it)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _padding(header: pydicom.Dataset, slope: float, intercept: float) -> tuple[int, int] | None:
    """Lowest and highest stored value that is not a measurement; None without padding.

    Some headers name water, or all values; nothing is padding then.
    """
    padding, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if padding is None:
        return None
    try:
        low, high = sorted((_stored(padding, header), _stored(padding if limit is None else limit, header)))
    except (TypeError, ValueError):  # several values, or text
        return None
    lowest, highest = sorted(slope * stored + intercept for stored in (low, high))
    return None if lowest <= BONE and highest >= BODY else (low, high)


def _directions(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Directions of rows and columns (2, 3), of length 1."""
    directions: NDArray[np.float64] = np.array(orientation, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise SliceError("orientation is not two directions")
    directions /= lengths
    if np.linalg.norm(np.cross(*directions)) < SMALLEST_SINE:
        raise SliceError("orientation is not a plane")
    return directions


def _comparable(name: str, value: object) -> str:
    """An element of `IDENTITY` as text that does not depend on how it is written, nor in which character set.

    Of a name only the alphabetic group is taken (PS3.5, 6.2), of which letters of the default repertoire are left; of a
    date the digits (`1950.01.02`, as ACR-NEMA had it), of the sex the first letter (`Female`).
    """
    text = str(value or "").encode("ascii", "ignore").decode().strip().casefold()
    if name == "PatientName":
        return "".join(letter for letter in text.partition("=")[0] if letter.isalnum())
    if name.endswith("Date"):
        return "".join(letter for letter in text if letter.isdigit())
    return text[:1] if name == "PatientSex" else text


def _marks(first: Callable[[str], Any], frame: int | None) -> tuple[str, ...]:
    """The values of `MARK_NAMES`, for the `first` of a slice's functional groups that has them."""
    marks = [_text(first(name)) for name in MARKS]
    for name, date in TIMES.items():
        place = MARKS.index(name)
        marks[place] = marks[place] and f"{_text(first(date)) or NO_DATE}{marks[place]}"
    instance = _text(first("InstanceNumber"))
    # The frames of a file are numbered by their order in it.
    marks.append(instance if frame is None else f"{instance or 0}.{frame:09d}")
    index = first("DimensionIndexValues")
    marks += [_text(one) for one in (index if isinstance(index, Sequence) else [index])]
    marks += [""] * len(MARK_NAMES)
    return tuple(sys.intern(mark) for mark in marks[: len(MARK_NAMES)])


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _stored(value: Any, header: pydicom.Dataset) -> int:  # noqa: ANN401 (bytes or int, as pydicom guesses)
    """A stored pixel value, signed if the pixels are: implicit files leave that open, and it is read as unsigned."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    bits = int(header.get("BitsAllocated") or 16)
    signed = bool(header.get("PixelRepresentation")) and number >= 1 << (bits - 1)
    return number - (1 << bits) if signed else number
