"""The mask as a DICOM segmentation (PS3.3, A.51), for viewers and archives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import highdicom
import numpy as np
import pydicom
from highdicom.sr import CodedConcept
from numpy.typing import NDArray

from ..organs import ANATOMICAL_STRUCTURE, listed
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.dicom import DicomVolume
from .dicom_result import DicomResult, algorithm_name, content_uid, derived_uid, found_organs, source_headers
from .result import PROGRAM

SegType = Literal["binary", "labelmap"]
SOP_CLASSES: dict[SegType, str] = {  # PS3.4, B.5
    "binary": "1.2.840.10008.5.1.4.1.1.66.4",
    "labelmap": "1.2.840.10008.5.1.4.1.1.66.7",
}
RLE = pydicom.uid.RLELossless


class DicomSeg(DicomResult):
    """X.seg.dcm: one segment per organ that was found, on the frames of the source series.

    Patient, study and frame of reference are the source's.

    Args:
        seg_type: `binary` has a frame for each organ and slice and opens everywhere; `labelmap` (Supplement 243) takes
            a tenth of the space, and few programs know it yet.
    """

    takes = ("seg_type",)
    extension, series_number, kind = ".seg.dcm", 900, "a DICOM segmentation"

    def __init__(self, seg_type: SegType = "binary") -> None:
        self.seg_type = seg_type

    def dataset(self, segmentation: Segmentation, volume: DicomVolume) -> pydicom.Dataset:
        """The segmentation as highdicom's object; see `DicomResult.dataset`."""
        sources, found = source_headers(volume), found_organs(segmentation)
        numbers = np.zeros(256, np.uint8)
        numbers[found] = np.arange(1, len(found) + 1)  # DICOM counts segments without gaps
        is_binary = self.seg_type == "binary"
        made = highdicom.seg.Segmentation(
            source_images=[_frames_alone(sources[0], volume)] if _is_part_of_file(volume) else sources,
            pixel_array=numbers[frames_of(segmentation.mask, volume)],
            segmentation_type=self.seg_type.upper(),
            segment_descriptions=_segments(segmentation),
            transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian if is_binary else RLE,
            series_instance_uid=self.series_uid(segmentation, sources),
            series_number=self.series_number + volume.files[0].number,
            sop_instance_uid=self.instance_uid(segmentation, sources),
            instance_number=1,
            manufacturer=PROGRAM,
            manufacturer_model_name=PROGRAM,
            software_versions=__version__,
            device_serial_number="0",
            series_description=f"{segmentation.model.name}: {listed(segmentation.organs)}",
        )
        if _is_part_of_file(volume):
            _number_as_in_file(made, volume)
        return made

    def instance_uid(self, segmentation: Segmentation, sources: Sequence[pydicom.Dataset]) -> str:
        """The segmentation's own UID, which a report refers to."""
        return content_uid(segmentation, sources, "instance", *self._kind_of_uid())

    def series_uid(self, segmentation: Segmentation, sources: Sequence[pydicom.Dataset]) -> str:
        """The UID of its series."""
        return derived_uid(segmentation, sources, "series", *self._kind_of_uid())

    def class_uid(self) -> str:
        """The UID of its kind of object."""
        return SOP_CLASSES[self.seg_type]

    def _kind_of_uid(self) -> tuple[str, ...]:
        return () if self.seg_type == "binary" else (self.seg_type,)


def _segments(segmentation: Segmentation) -> list[Any]:
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=algorithm_name(segmentation),
        version=__version__,
        family=pydicom.sr.codedict.codes.DCM.ArtificialIntelligence,
        parameters={name: f"sha256 {digest}" for name, digest in segmentation.model.sha256.items()},
    )
    category = CodedConcept(ANATOMICAL_STRUCTURE[0], "SCT", ANATOMICAL_STRUCTURE[1])
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=organ.meaning,
            segmented_property_category=category,
            segmented_property_type=CodedConcept(organ.snomed, "SCT", organ.meaning),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*organ.rgb),
        )
        for number, organ in enumerate(found_organs(segmentation), 1)
    ]


def _is_part_of_file(volume: DicomVolume) -> bool:
    """Whether a volume is some of the frames of a multi-frame file that holds others too."""
    return volume.files[0].frame is not None and len(volume.files) < volume.files[0].frames


def _frames_alone(source: pydicom.Dataset, volume: DicomVolume) -> pydicom.Dataset:
    """The header of a file with several volumes, as if it held this one alone: highdicom takes one frame per place."""
    alone = copy.copy(source)
    frames = [source.PerFrameFunctionalGroupsSequence[one.frame or 0] for one in volume.files]
    alone.PerFrameFunctionalGroupsSequence = frames
    alone.NumberOfFrames = len(frames)
    return alone


def _number_as_in_file(made: pydicom.Dataset, volume: DicomVolume) -> None:
    """Let the frames of a segmentation name those of the whole file, and not those of `_frames_alone`."""
    for frame in made.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = (volume.files[image.ReferencedFrameNumber - 1].frame or 0) + 1


def frames_of(mask: NDArray[np.uint8], volume: DicomVolume) -> NDArray[np.uint8]:
    """A mask (columns, rows, slices) as (frames, rows, columns), in the order of the source's files and frames.

    Only the volume's own frames, in its order, where the file holds other volumes too.
    """
    frames = [one.frame for one in volume.files]
    is_whole_file = frames[0] is not None and not _is_part_of_file(volume)
    labels = np.zeros((len(frames), mask.shape[1], mask.shape[0]), np.uint8)
    for i, (frame, plane) in enumerate(zip(frames, volume.planes_of_files(), strict=True)):
        labels[frame if is_whole_file and frame is not None else i] = mask[:, :, plane].T
    return labels
