"""The organs' outlines as a DICOM structure set (PS3.3, A.19), for treatment planning."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Iterable

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset

from ..organs import Organ, listed
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.dicom import DicomVolume
from .dicom_result import (
    MAY_BE_EMPTY,
    DicomResult,
    algorithm_name,
    content_uid,
    derived_uid,
    found_organs,
    source_headers,
)
from .outlines import outlines
from .result import PROGRAM

PATIENT_GROUPS = (0x0010, 0x0012)  # whose patient and trial it is, who issued the ID, how it was de-identified
STUDY = {
    *MAY_BE_EMPTY,
    "StudyInstanceUID",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "PhysiciansOfRecord",
    "FrameOfReferenceUID",
}
FRAME_OF_REFERENCE_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, and still what the attribute asks for (C.8.8.5)


class RtStruct(DicomResult):
    """X.rtstruct.dcm: closed outlines of every organ that was found, slice by slice.

    Outlines run halfway between the pixels' centres, so that whoever fills them gets the mask back. A hole is joined to
    what surrounds it by a line there and back (a keyhole), which every reader knows.
    """

    extension, series_number, kind = ".rtstruct.dcm", 920, "a structure set"

    def dataset(self, segmentation: Segmentation, volume: DicomVolume) -> pydicom.Dataset:
        """The structure set; see `DicomResult.dataset`."""
        sources, found = source_headers(volume), found_organs(segmentation)
        source = sources[0]
        one = Dataset()
        for element in source:
            if element.tag.group in PATIENT_GROUPS or element.keyword in STUDY:
                one[element.tag] = element
        now = datetime.datetime.now(tz=datetime.UTC)
        one.SOPClassUID = pydicom.uid.RTStructureSetStorage
        one.SOPInstanceUID = content_uid(segmentation, sources, "structures")
        one.SeriesInstanceUID = derived_uid(segmentation, sources, "structures series")
        one.Modality, one.Manufacturer, one.ManufacturerModelName = "RTSTRUCT", PROGRAM, PROGRAM
        one.SoftwareVersions, one.DeviceSerialNumber = __version__, "0"
        one.SeriesNumber = self.series_number + volume.files[0].number
        one.SeriesDescription = f"{segmentation.model.name}: {listed(segmentation.organs)}"
        one.OperatorsName, one.InstanceNumber, one.PositionReferenceIndicator = "", 1, ""
        one.StructureSetLabel, one.StructureSetName = "Abdominal organs", algorithm_name(segmentation)
        one.StructureSetDate, one.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
        one.ApprovalStatus = "UNAPPROVED"
        paths = dict.fromkeys(file.path for file in volume.files)
        images = {path: _reference(header) for path, header in zip(paths, sources, strict=True)}
        one.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source, images.values())]
        one.StructureSetROISequence = [_region(n, organ, segmentation, source) for n, organ in enumerate(found, 1)]
        one.ROIContourSequence = [
            _outlines(n, organ, segmentation.mask, volume, images) for n, organ in enumerate(found, 1)
        ]
        one.RTROIObservationsSequence = [_observation(n, organ) for n, organ in enumerate(found, 1)]
        one.file_meta = FileMetaDataset()
        # Explicit, an outline of more than 64 KiB would have to be of VR UN (PS3.5, 6.2.2), which few programs read.
        one.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return one


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _frame_of_reference(source: Dataset, images: Iterable[Dataset]) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = list(images)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = FRAME_OF_REFERENCE_CLASS, source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _region(number: int, organ: Organ, segmentation: Segmentation, source: Dataset) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = number, organ.meaning
    item.ReferencedFrameOfReferenceUID = source.FrameOfReferenceUID
    item.ROIGenerationAlgorithm, item.ROIGenerationDescription = "AUTOMATIC", algorithm_name(segmentation)
    return item


def _observation(number: int, organ: Organ) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodeMeaning = organ.snomed, organ.meaning
    code.CodingSchemeDesignator = "SCT"
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIIdentificationCodeSequence = [code]
    item.RTROIInterpretedType, item.ROIInterpreter = "ORGAN", ""
    return item


def _outlines(
    number: int, organ: Organ, mask: NDArray[np.uint8], volume: DicomVolume, images: dict[pathlib.Path, Dataset]
) -> Dataset:
    """All outlines of an organ, each in the plane of the image that it names, which may lie beside the volume's own."""
    contours = []
    for file, plane in zip(volume.files, volume.planes_of_files(), strict=True):
        steps = file.orientation * np.array(file.spacing_mm)[::-1, None]  # to the next column, to the next row
        for points in outlines(mask[:, :, plane] == organ):
            millimetres = file.position + points @ steps
            item, image = Dataset(), Dataset()
            image.update(images[file.path])
            if file.frame is not None:
                image.ReferencedFrameNumber = file.frame + 1
            item.ContourImageSequence = [image]
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            item.ContourData = [f"{value:.4f}" for value in millimetres.ravel()]  # a decimal string has 16 characters
            contours.append(item)
    region = Dataset()
    region.ROIDisplayColor, region.ReferencedROINumber = list(organ.rgb), number
    region.ContourSequence = contours
    return region
