"""The mask as a DICOM segmentation (PS3.3, A.51), for viewers and archives."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import ResultError
from ..organs import ORGANS, SNOMED_CT
from ..volumes.dicom import DicomVolume
from ..whole_file import whole_file
from .result import PROGRAM, Segmented

EXTENSION = ".seg.dcm"
SERIES_NUMBER = 900  # of the segmentation, plus the scan's own
# Of patient and study, required but allowed to be empty (type 2); anonymised series lack them.
MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")


class DicomSeg:
    """X.seg.dcm: one binary segment per organ that was found, on the frames of the source series.

    Patient, study and frame of reference are the source's. UIDs are derived from the source's and the weights, so that
    a second run gives the same ones.
    """

    needs_dicom = True

    def path(self, mask_path: pathlib.Path) -> pathlib.Path:
        """Beside the mask."""
        return mask_path.with_name(mask_path.name.removesuffix(".gz").removesuffix(".nii") + EXTENSION)

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether a file is a segmentation of this program; see `Result.wrote`."""
        import pydicom

        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ManufacturerModelName"])
        except (OSError, pydicom.errors.InvalidDicomError):
            return False
        return str(header.get("ManufacturerModelName")) == PROGRAM

    def write(self, segmented: Segmented, path: pathlib.Path) -> None:
        """Write the segmentation; see `Result.write`."""
        if not isinstance(segmented.volume, DicomVolume):
            raise ResultError(f"{path}: a DICOM segmentation needs a DICOM scan; save nifti instead")
        try:
            with warnings.catch_warnings(action="ignore"):  # about values in the source that do not matter here
                dataset = segmentation(segmented, segmented.volume)
            with whole_file(path) as stream:
                dataset.save_as(stream)
        except OSError as error:
            raise ResultError(f"{path}: cannot be written ({error.strerror}); check the folder and its disk") from error
        except (AttributeError, ValueError, TypeError, KeyError) as error:  # the source lacks what DICOM asks for
            line = " ".join(f"{type(error).__name__}: {error}".split())
            raise ResultError(f"{path}: the series cannot carry a segmentation ({line}); save nifti instead") from error


def segmentation(segmented: Segmented, volume: DicomVolume) -> Any:  # noqa: ANN401 (a class of highdicom)
    """The segmentation as highdicom's object."""
    import highdicom
    import pydicom
    from highdicom.sr import CodedConcept

    labels = frames_of(segmented.mask, volume)
    sources = [pydicom.dcmread(one, stop_before_pixels=True) for one in dict.fromkeys(one.path for one in volume.files)]
    for source in sources:
        for keyword in MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
        if not source.get("SliceThickness"):
            source.SliceThickness = round(float(np.linalg.norm(volume.geometry.affine[:3, 2])), 4)
    found = [organ for organ in ORGANS if (labels == organ).any()]
    if not found:
        raise ValueError("no organ was found, and an empty segmentation is not allowed")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"{PROGRAM} {segmented.model} {segmented.model_version}",
        version=__version__,
        family=pydicom.sr.codedict.codes.DCM.ArtificialIntelligence,
        parameters={name: f"sha256 {digest}" for name, digest in segmented.weights_sha256.items()},
    )
    numbered = np.zeros_like(labels)
    segments = []
    for number, organ in enumerate(found, 1):  # DICOM counts segments without gaps
        numbered[labels == organ] = number
        code, meaning = SNOMED_CT[organ]
        segments.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=meaning,
                segmented_property_category=CodedConcept(ANATOMICAL_STRUCTURE[0], "SCT", ANATOMICAL_STRUCTURE[1]),
                segmented_property_type=CodedConcept(code, "SCT", meaning),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
        )
    weights = ",".join(segmented.weights_sha256.values())
    series, instance = (
        pydicom.uid.generate_uid(entropy_srcs=[str(sources[0].SeriesInstanceUID), weights, __version__, kind])
        for kind in ("series", "instance")
    )
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=numbered,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=series,
        series_number=SERIES_NUMBER + int(sources[0].get("SeriesNumber") or 0),
        sop_instance_uid=instance,
        instance_number=1,
        manufacturer=PROGRAM,
        manufacturer_model_name=PROGRAM,
        software_versions=__version__,
        device_serial_number="0",
        series_description=f"{segmented.model}: liver, kidneys, spleen, pancreas",
    )


def frames_of(mask: NDArray[np.uint8], volume: DicomVolume) -> NDArray[np.uint8]:
    """A mask (columns, rows, slices) as (frames, rows, columns), in the order of the source's files and frames."""
    frames = [one.frame for one in volume.files]
    count = 1 + max(frame if frame is not None else i for i, frame in enumerate(frames))
    labels = np.zeros((count, mask.shape[1], mask.shape[0]), np.uint8)
    for i, frame in enumerate(frames):
        labels[i if frame is None else frame] = mask[:, :, i].T
    return labels
