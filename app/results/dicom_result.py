"""What all DICOM outputs share: file names, the source that they belong to, and UIDs that a second run repeats."""

from __future__ import annotations

import io
import pathlib
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement

from ..errors import ResultError
from ..organs import Organ
from ..ownership import BLANK, has_mark, marked
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.dicom import DicomVolume
from ..volumes.walk import first_bytes
from ..whole_file import whole_file
from .result import PROGRAM, Result, beside

# Of patient and study, required but allowed to be empty (type 2); anonymised series lack them.
MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
# Of these, what highdicom refuses where a value is none that the standard allows (`2020-01-01`, `female`).
CHECKED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
PREAMBLE_BYTES = 128
UNDEFINED = 0xFFFFFFFF  # undefined length, PS3.5, 7.1.1
NAMES_ITS_MAKER = ["ManufacturerModelName", "SoftwareVersions"]
VERSIONS_WITHOUT_MARK = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.6.1")
ENCODED = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")  # what is in an object's character set (PS3.5, 6.1.2.2)


class DicomResult(Result):
    """A DICOM object of one case, in the study of its source series.

    Attributes:
        extension: of the file's name.
        series_number: the object's series number is this plus the scan's own.
        kind: of the object, in messages.
    """

    needs_dicom = True
    extension: str
    series_number: int
    kind: str

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Beside the mask."""
        return beside(base, self.extension)

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether an object may be replaced; see `Result.wrote`. Its mark lies in the preamble."""
        if has_mark(first_bytes(path)):
            return super().wrote(path)
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=NAMES_ITS_MAKER)
        except (OSError, pydicom.errors.InvalidDicomError):
            return not self.is_whole(path)
        is_old = header.get("SoftwareVersions") in VERSIONS_WITHOUT_MARK
        return is_old and header.get("ManufacturerModelName") == PROGRAM

    def has_end(self, path: pathlib.Path) -> bool:
        """Whether the last element of an object is whole; see `Result.has_end`."""
        try:
            one = pydicom.dcmread(path)
            last = one.get_item(max(one.keys()))
        except Exception:  # pydicom raises whatever a cut object makes of it
            return False
        return not isinstance(last, RawDataElement) or last.length in (UNDEFINED, len(last.value or b""))

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the object; see `Result.write`."""
        if not isinstance(segmentation.volume, DicomVolume):
            raise ResultError(f"{path}: {self.kind} needs a DICOM scan; save nifti instead")
        if not found_organs(segmentation):
            raise ResultError(f"{path}: no organ was found, and {self.kind} cannot be empty; save nifti or statistics")
        try:
            with warnings.catch_warnings(action="ignore"):  # about values in the source that do not matter here
                dataset = self.dataset(segmentation, segmentation.volume)
                _copy_text(dataset, segmentation.volume)
                dataset.preamble = BLANK.ljust(PREAMBLE_BYTES, b"\0")  # a program's own, PS3.10, 7.1
                content = io.BytesIO()
                dataset.save_as(content, enforce_file_format=True)
        except OSError as error:
            raise ResultError(
                f"{path}: {self.kind} needs the scan, which cannot be read again ({error.filename}: {error.strerror}); "
                "save this before the scan is moved or deleted"
            ) from error
        except (AttributeError, ValueError, TypeError, KeyError) as error:  # the source lacks what DICOM asks for
            line = " ".join(f"{type(error).__name__}: {error}".split())
            raise ResultError(
                f"{path}: the series cannot carry {self.kind} ({line}); repair its headers, or leave this output out"
            ) from error
        try:
            with whole_file(path) as stream:
                stream.write(marked(content.getvalue()))
        except OSError as error:
            raise ResultError(f"{path}: cannot be written ({error.strerror}); check the folder and its disk") from error

    @abstractmethod
    def dataset(self, segmentation: Segmentation, volume: DicomVolume) -> pydicom.Dataset:
        """The object.

        Raises:
            AttributeError, ValueError, TypeError, KeyError: the source lacks what the object needs.
        """


def _copy_text(dataset: pydicom.Dataset, volume: DicomVolume) -> None:
    """Give an object its source's character set, and the text that it has from there byte for byte.

    pydicom decodes more than it can encode again. What this program itself writes is ASCII, which all sets have.
    """
    source = _header_of(volume.files[0].path)
    stored = {tag: source.get_item(tag).value for tag in dataset.keys() & source.keys()}  # before it is decoded
    for tag, content in stored.items():
        element = dataset[tag]
        is_same = element.VR in ENCODED and element.value == source[tag].value
        if isinstance(content, bytes) and (is_same or element.keyword in CHECKED):
            element.value = content
    if "SpecificCharacterSet" in source:
        dataset["SpecificCharacterSet"] = source["SpecificCharacterSet"]


def _header_of(path: pathlib.Path) -> pydicom.Dataset:
    """All of a file but its pixels; it may lack the preamble, as those that are read may."""
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def _is_positive(value: Any) -> bool:  # noqa: ANN401 (whatever pydicom makes of it)
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False


def source_headers(volume: DicomVolume) -> list[pydicom.Dataset]:
    """The headers of the scan's files, each once, in the order of the slices, with what they may lack but not omit.

    They come without their character set, of which highdicom refuses many that are in use, such as every one with code
    extensions whose first value is empty (PS3.3, C.12.1.1.2). Their text is decoded by it all the same, and
    `DicomResult.write` gives it to the object. So it does with `CHECKED`, which are empty here.

    Raises:
        ValueError: images share a UID, or have none.
    """
    paths = dict.fromkeys(one.path for one in volume.files)
    sources = [_header_of(path) for path in paths]
    for source in sources:
        if not source.get("SOPClassUID") and (stored := source.file_meta.get("MediaStorageSOPClassUID")):
            source.SOPClassUID = stored  # the reader takes it from there, too
    images = {source.get("SOPInstanceUID") or "" for source in sources}
    if len(images) < len(sources) or "" in images:
        raise ValueError("its images have no SOPInstanceUIDs of their own, by which the object would name them")
    for source in sources:
        source.pop("SpecificCharacterSet", None)
        for keyword in MAY_BE_EMPTY:
            if keyword not in source or keyword in CHECKED:
                setattr(source, keyword, "")
        if not source.get("FrameOfReferenceUID"):  # its images still lie in one, whose name was lost
            source.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=["frame", volume.series_uid])
        if not _is_positive(source.get("SliceThickness")):
            edges = volume.geometry.affine[:3, :3]
            area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]))
            source.SliceThickness = round(float(abs(np.linalg.det(edges)) / area), 4)  # along the normal
    return sources


def found_organs(segmentation: Segmentation) -> list[Organ]:
    """The organs in the mask, in the order of their labels: segment and region 1, 2 ..."""
    return [organ for organ, count in segmentation.voxels.items() if count]


def derived_uid(segmentation: Segmentation, sources: Sequence[pydicom.Dataset], *what: str) -> str:
    """A UID that only the source's images, the weights, the program's version and `what` decide.

    Not the series UID, which several volumes may share.

    Args:
        segmentation: of a DICOM scan.
        sources: its headers, see `source_headers`.
        what: tells UIDs of one scan apart.
    """
    images = [str(source.SOPInstanceUID) for source in sources]
    volume = segmentation.volume
    files = volume.files if isinstance(volume, DicomVolume) else ()
    frames = [str(one.frame) for one in files if one.frame is not None]
    weights = ",".join(segmentation.model.sha256.values())
    uid: Any = pydicom.uid.generate_uid(entropy_srcs=[*images, *frames, weights, __version__, *what])
    return str(uid)


def content_uid(segmentation: Segmentation, sources: Sequence[pydicom.Dataset], *what: str) -> str:
    """A `derived_uid` for an object that holds the mask: archives keep the first of two objects with one UID."""
    return derived_uid(segmentation, sources, *what, segmentation.mask_sha256)


def algorithm_name(segmentation: Segmentation) -> str:
    """The program and its model, as DICOM objects name them."""
    return f"{PROGRAM} {segmentation.model.name} {segmentation.model.version}"
