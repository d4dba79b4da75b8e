"""A CT series as DICOM files: any spacing, direction, tilt and transfer syntax, and what goes wrong."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Sequence

import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

CT, ENHANCED_CT, SECONDARY = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "7"))
AXIAL = (1.0, 0, 0, 0, 1.0, 0)
OFFSET = 1024


def uid(*entropy: object) -> str:
    """A UID that depends on these words alone."""
    return str(generate_uid(entropy_srcs=[str(e) for e in entropy]))


def meta(sop_class: str, sop_instance: str, syntax: str) -> FileMetaDataset:
    """The file's own header."""
    found = FileMetaDataset()
    found.MediaStorageSOPClassUID, found.MediaStorageSOPInstanceUID = sop_class, sop_instance
    found.TransferSyntaxUID = syntax
    return found


def common(series: str, number: int, sop_class: str) -> Dataset:
    """What all slices of a series share."""
    one = Dataset()
    one.SOPClassUID, one.Modality = sop_class, "CT"
    one.PatientName, one.PatientID = "Phantom^Otto", "P1"
    one.StudyInstanceUID, one.SeriesInstanceUID = uid("study"), uid(series)
    one.FrameOfReferenceUID, one.SeriesNumber = uid("frame"), number
    one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    one.RescaleSlope, one.RescaleIntercept = "1", str(-OFFSET)
    return one


def corners(count: int, dz: float, orientation: Sequence[float], tilt_mm: float) -> NDArray[np.float64]:
    """The position of every slice's first pixel; `tilt_mm` is how far a slice slides along its columns."""
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    steps = np.arange(count)[:, None]
    start = -100 * rows - 90 * columns
    places: NDArray[np.float64] = start + steps * (dz * np.cross(rows, columns) + tilt_mm * columns)
    return places


def write_series(
    folder: pathlib.Path,
    hounsfield: NDArray[np.int16],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 3.0),
    orientation: Sequence[float] = AXIAL,
    tilt_mm: float = 0.0,
    syntax: str = ExplicitVRLittleEndian,
    series: str = "one",
    number: int = 3,
    skip: Sequence[int] = (),
    acquisition: int = 1,
    name: str = "{}.dcm",
    **changes: object,
) -> list[pathlib.Path]:
    """Write slices (columns, rows, count) of HU, in file names that are shuffled.

    Args:
        folder: made if it is not there.
        hounsfield: (x, y, z) along rows, columns and the normal.
        spacing_mm: likewise.
        orientation: of rows and columns, in patient LPS.
        tilt_mm: see `corners`.
        syntax: transfer syntax UID.
        series: another name is another series UID.
        number: of the series.
        skip: slices that are left out.
        acquisition: number.
        name: of the files; {} is a shuffled number.
        changes: elements set on every slice; None deletes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = hounsfield.shape[2]
    order = random.Random(0).sample(range(count), count)
    written = []
    for z, place in enumerate(corners(count, spacing_mm[2], orientation, tilt_mm)):
        if z in skip:
            continue
        one = common(series, number, CT)
        one.SOPInstanceUID, one.InstanceNumber = uid(series, acquisition, z), count - z
        one.AcquisitionNumber = acquisition
        one.ImagePositionPatient = [f"{value:.6g}" for value in place]
        one.ImageOrientationPatient = [f"{value:.8g}" for value in orientation]
        one.PixelSpacing = [str(spacing_mm[1]), str(spacing_mm[0])]
        plane = np.ascontiguousarray(hounsfield[:, :, z].T)
        one.Rows, one.Columns = plane.shape
        stored = (plane.astype(np.int32) + OFFSET).astype(np.uint16)
        one.file_meta = meta(CT, one.SOPInstanceUID, ExplicitVRLittleEndian)
        one.PixelData = stored.tobytes()
        one["PixelData"].VR = "OW"
        for element, value in changes.items():
            if value is None:
                delattr(one, element)
            else:
                setattr(one, element, value)
        path = folder / name.format(order[z])
        store(one, path, syntax)
        written.append(path)
    return written


def store(one: Dataset, path: pathlib.Path, syntax: str) -> None:
    """Write a dataset in a transfer syntax, compressed if that says so."""
    target = pydicom.uid.UID(syntax)
    if target == JPEGLosslessSV1:
        store(one, path, ExplicitVRLittleEndian)
        as_jpeg_lossless(path)
        return
    if target.is_compressed and not target.is_deflated:
        one.compress(target, generate_instance_uid=False)
    elif not target.is_little_endian:
        one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
    one.file_meta.TransferSyntaxUID = target
    pydicom.dcmwrite(
        path,
        one,
        enforce_file_format=True,
        implicit_vr=target.is_implicit_VR if not target.is_compressed else False,
        little_endian=target.is_little_endian,
    )


def as_jpeg_lossless(path: pathlib.Path) -> None:
    """Compress a file by GDCM, since pydicom has no encoder for this syntax."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def write_enhanced(
    path: pathlib.Path,
    hounsfield: NDArray[np.int16],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 3.0),
    orientation: Sequence[float] = AXIAL,
) -> None:
    """Write slices as one enhanced multi-frame file, its frames shuffled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one = common("enhanced", 5, ENHANCED_CT)
    del one.RescaleSlope, one.RescaleIntercept
    one.SOPInstanceUID, one.InstanceNumber = uid("enhanced"), 1
    count = hounsfield.shape[2]
    order = random.Random(1).sample(range(count), count)
    measures, turn, transformation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing_mm[1], spacing_mm[0]], spacing_mm[2]
    turn.ImageOrientationPatient = list(orientation)
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = 1, -OFFSET, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([turn])
    shared.PixelValueTransformationSequence = Items([transformation])
    one.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for z in order:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = list(corners(count, spacing_mm[2], orientation, 0.0)[z])
        frame.PlanePositionSequence = Items([place])
        frames.append(frame)
    one.PerFrameFunctionalGroupsSequence = Items(frames)
    stack = (hounsfield[:, :, order].transpose(2, 1, 0).astype(np.int32) + OFFSET).astype(np.uint16)
    one.NumberOfFrames, one.Rows, one.Columns = stack.shape
    one.PixelData = np.ascontiguousarray(stack).tobytes()
    one["PixelData"].VR = "OW"
    one.file_meta = meta(ENHANCED_CT, one.SOPInstanceUID, ExplicitVRLittleEndian)
    pydicom.dcmwrite(path, one, enforce_file_format=True)
