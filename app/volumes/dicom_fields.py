"""The elements of a DICOM header that are read, by what they are read for."""

from __future__ import annotations

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# Whose and which: slices that differ here never share a volume.
PATIENT = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("ClinicalTrialSubjectID", "ClinicalTrialSiteID"),  # what is left of these in the data of a trial
)
STUDY = ("StudyInstanceUID", "StudyID", "StudyDate", "AccessionNumber")
IDENTITY = (*PATIENT, *STUDY, "FrameOfReferenceUID")
# Times and the dates that go with them.
TIMES = {
    "AcquisitionTime": "AcquisitionDate",
    "ContentTime": "ContentDate",
    "SeriesTime": "SeriesDate",
    "InstanceCreationTime": "InstanceCreationDate",
}
# What may tell volumes of one series apart, in single-frame and in multi-frame files (PS3.3, C.7.6 and C.8.15). Tube
# current and exposure follow the patient's thickness from slice to slice, and so tell nothing.
MARKS = (
    *("AcquisitionNumber", "FrameAcquisitionNumber", "AcquisitionUID", "IrradiationEventUID"),
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "TemporalPositionTimeOffset", "PhaseNumber", "StackID"),
    *("TriggerTime", "NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime", "CardiacCyclePosition"),
    *("ActualCardiacTriggerDelayTime", "NominalPercentageOfRespiratoryPhase", "NominalRespiratoryTriggerDelayTime"),
    *("ContrastBolusAgent", "ContrastBolusAgentNumber", "ContrastBolusAgentPhase", "ContrastBolusVolume"),
    *("ContrastBolusStartTime", "ContrastBolusStopTime", "ContrastBolusTotalDose", "ContrastBolusIngredient"),
    *("KVP", "ConvolutionKernel", "FilterType", "ReconstructionAlgorithm", "ReconstructionDiameter", "SliceThickness"),
    *("ScanOptions", "PatientPosition", "ProtocolName", "AcquisitionProtocolName", "SeriesNumber", "SeriesDescription"),
    *("ImageComments", "FrameComments", "DerivationDescription", "StationName", "DeviceSerialNumber"),
    *("StudyTime", "StudyDescription", "ReferringPhysicianName", "RequestedProcedureID", "OtherPatientIDs"),
    *("PatientAge", "PatientSize", "PatientWeight", "InstitutionName", "Manufacturer", "ManufacturerModelName"),
    *("AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime", *TIMES),
)
INDEX_VALUES = 6  # dimensions of a multi-frame file that are looked at
MARK_NAMES = (*MARKS, "InstanceNumber", *(f"DimensionIndexValues {i + 1}" for i in range(INDEX_VALUES)))
TAGS = [
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "ImageType", "Rows", "Columns"),
    *("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "RescaleType", "PhotometricInterpretation"),
    *("SamplesPerPixel", "PixelRepresentation", "BitsAllocated", "BitsStored"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence", "SliceLocation"),
    *("PerFrameFunctionalGroupsSequence", *GEOMETRY, *IDENTITY, *MARKS, *TIMES.values()),
]
# Values of RescaleType that are not Hounsfield units (PS3.3, C.11.1.1.2): maps of iodine, effective atomic number,
# electron density and the like, which scanners with several energies store as CT.
OTHER_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
# Words of ImageType for projections of several slices into one (PS3.3, C.8.15.3, and what scanners write).
PROJECTIONS = ("MIP", "MAX_IP", "MINIP", "MIN_IP")
CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}
