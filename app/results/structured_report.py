"""The organs' volumes as a DICOM structured report (TID 1500, PS3.16), which names the segments that it measured."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import highdicom.sr as sr
import pydicom
from pydicom.sr.codedict import codes

from ..organs import Organ, listed
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.dicom import DicomVolume
from .dicom_result import DicomResult, algorithm_name, content_uid, derived_uid, found_organs, source_headers
from .dicom_seg import DicomSeg, SegType
from .result import PROGRAM

MILLILITRE = sr.CodedConcept("ml", "UCUM", "milliliter")


class StructuredReport(DicomResult):
    """X.sr.dcm: the volume of every organ that was found, in ml, each with its segment.

    Args:
        seg_type: of the segmentation that it refers to, see `DicomSeg`.
    """

    requires = refers_to = ("dicom-seg",)
    takes = DicomSeg.takes
    extension, series_number, kind = ".sr.dcm", 950, "a DICOM report"

    def __init__(self, seg_type: SegType = "binary") -> None:
        self.segmentation = DicomSeg(seg_type)

    def dataset(self, segmentation: Segmentation, volume: DicomVolume) -> pydicom.Dataset:
        """The report as highdicom's object; see `DicomResult.dataset`."""
        sources = source_headers(volume)
        segments = self._segments_header(segmentation, sources)
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=_observer(segmentation, sources)),
            procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
            imaging_measurements=[
                _measurement(segmentation, number, organ, segments, sources)
                for number, organ in enumerate(found_organs(segmentation), 1)
            ],
            title=codes.DCM.ImagingMeasurementReport,
        )
        dataset = sr.Comprehensive3DSR(
            evidence=[segments, *sources],
            content=report[0],
            series_instance_uid=derived_uid(segmentation, sources, "report series"),
            series_number=self.series_number + volume.files[0].number,
            sop_instance_uid=content_uid(segmentation, sources, "report"),
            instance_number=1,
            manufacturer=PROGRAM,
            is_complete=True,
        )
        dataset.ManufacturerModelName, dataset.SoftwareVersions = PROGRAM, __version__
        dataset.DeviceSerialNumber = "0"
        dataset.SeriesDescription = f"{segmentation.model.name}: volumes of {listed(segmentation.organs)}"
        return dataset

    def _segments_header(self, segmentation: Segmentation, sources: Sequence[pydicom.Dataset]) -> pydicom.Dataset:
        """What a reference to the segmentation needs: the source's patient and study, the segmentation's own UIDs."""
        header = copy.copy(sources[0])
        header.SOPClassUID = self.segmentation.class_uid()
        header.SOPInstanceUID = self.segmentation.instance_uid(segmentation, sources)
        header.SeriesInstanceUID = self.segmentation.series_uid(segmentation, sources)
        return header


def _measurement(
    segmentation: Segmentation,
    number: int,
    organ: Organ,
    segments: pydicom.Dataset,
    sources: Sequence[pydicom.Dataset],
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            derived_uid(segmentation, sources, "tracking", organ.meaning), organ.meaning
        ),
        referenced_segment=sr.ReferencedSegment(
            segments.SOPClassUID,
            segments.SOPInstanceUID,
            number,
            source_series=sr.SourceSeriesForSegmentation(sources[0].SeriesInstanceUID),
        ),
        finding_type=sr.CodedConcept(organ.snomed, "SCT", organ.meaning),
        measurements=[
            sr.Measurement(name=codes.SCT.Volume, value=round(segmentation.volumes_ml[organ], 3), unit=MILLILITRE)
        ],
        algorithm_id=sr.AlgorithmIdentification(algorithm_name(segmentation), __version__),
    )


def _observer(segmentation: Segmentation, sources: Sequence[pydicom.Dataset]) -> sr.ObserverContext:
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid(segmentation, sources, "device"), name=algorithm_name(segmentation), model_name=PROGRAM
        ),
    )
