"""DICOM segmentations: read back by highdicom's own reader, compared by geometry, and checked by dciodvfy."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import JPEGLSLossless

from app.cases import find_cases
from app.errors import InputError, ResultError
from app.organs import ORGANS
from app.results import make_results
from app.results.dicom_seg import DicomSeg
from app.run import predict_case
from app.segmenter import Segmenter
from app.volumes import open_volume
from phantom import make_phantom
from phantom.dicom import AXIAL, write_enhanced, write_series
from tests.tiny import segmentation_of

SPACING = (4.0, 3.5, 20.0)
BOTH = make_results(("nifti", "dicom-seg"))
FLIPPED = (1.0, 0, 0, 0, -1.0, 0)  # column direction -1, in which public writers have mirrored masks
CORONAL = (1.0, 0, 0, 0, 0, -1.0)
OBLIQUE = (0.96, 0.28, 0, -0.28, 0.96, 0)


@pytest.fixture(scope="module")
def hounsfield() -> NDArray[np.int16]:
    return make_phantom((72, 80, 12), SPACING)[0]


@pytest.fixture(scope="module")
def segmenter(tiny_weights: pathlib.Path) -> Segmenter:
    return Segmenter.load(tiny_weights, "cpu")


def run(folder: pathlib.Path, segmenter: Segmenter) -> tuple[nib.Nifti1Image, pathlib.Path]:
    """Segment the one series of a folder; its NIfTI mask, and the path of its segmentation."""
    (folder / "out").mkdir()
    (case,) = find_cases(folder / "in", folder / "out", BOTH)
    record = predict_case(segmenter, case)
    assert record.error is None
    return nib.load(case.outputs["nifti"]), case.outputs["dicom-seg"]


def in_patient_space(path: pathlib.Path, image: nib.Nifti1Image) -> NDArray[np.uint8]:
    """The segmentation's labels on the voxels of a NIfTI image, looked up by patient coordinates."""
    found = highdicom.seg.segread(path)
    organ_of = {item.SegmentNumber: str(item.SegmentLabel) for item in found.SegmentSequence}
    volume = found.get_volume(combine_segments=True, skip_overlap_checks=True)
    meaning = {organ.meaning: int(organ) for organ in ORGANS}
    labels = np.zeros_like(volume.array)
    for number, label in organ_of.items():
        labels[volume.array == number] = meaning[label]
    to_lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1).reshape(-1, 3)
    places = np.c_[grid, np.ones(len(grid))] @ (np.linalg.inv(volume.affine) @ to_lps).T
    index = np.rint(places[:, :3]).astype(int)
    assert np.abs(places[:, :3] - index).max() < 0.01
    inside = ((index >= 0) & (index < volume.array.shape)).all(1)  # empty frames may be left out
    values = np.zeros(len(grid), np.uint8)
    values[inside] = labels[tuple(index[inside].T)]
    return values.reshape(image.shape)


@pytest.mark.parametrize(
    "orientation", [AXIAL, FLIPPED, CORONAL, OBLIQUE], ids=["axial", "flipped", "coronal", "oblique"]
)
def test_it_holds_the_mask_by_geometry(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], segmenter: Segmenter, orientation: tuple[float, ...]
) -> None:
    write_series(tmp_path / "in", hounsfield, SPACING, orientation)
    mask, path = run(tmp_path, segmenter)
    assert len(np.unique(mask.dataobj)) > 2
    np.testing.assert_array_equal(in_patient_space(path, mask), np.asarray(mask.dataobj))


def test_the_source_may_be_compressed_tilted_or_multi_frame(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], segmenter: Segmenter
) -> None:
    write_series(tmp_path / "a" / "in", hounsfield, SPACING, syntax=JPEGLSLossless)
    write_enhanced(tmp_path / "b" / "in" / "file", hounsfield, SPACING)
    for folder in "ab":
        mask, path = run(tmp_path / folder, segmenter)
        np.testing.assert_array_equal(in_patient_space(path, mask), np.asarray(mask.dataobj))
    write_series(tmp_path / "c" / "in", hounsfield, SPACING, tilt_mm=5.0)
    mask, path = run(tmp_path / "c", segmenter)
    frames = highdicom.seg.segread(path).NumberOfFrames
    voxels = np.asarray(mask.dataobj)
    assert frames == sum((voxels[:, :, z] == organ).any() for z in range(12) for organ in ORGANS)


def test_codes_source_and_algorithm(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], segmenter: Segmenter
) -> None:
    (one, *_) = write_series(tmp_path / "in", hounsfield, SPACING)
    _, path = run(tmp_path, segmenter)
    source, found = pydicom.dcmread(one), pydicom.dcmread(path)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[keyword].value == source[keyword].value
    assert found.Modality == "SEG"
    assert found.SegmentationType == "BINARY"
    codes = {
        (str(item.SegmentedPropertyTypeCodeSequence[0].CodeValue), str(item.SegmentLabel))
        for item in found.SegmentSequence
    }
    assert codes <= {(organ.snomed, organ.meaning) for organ in ORGANS}
    algorithm = found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "hrnet-ocr-abdomen tiny 1"
    assert next(iter(segmenter.model.sha256.values())) in str(algorithm.AlgorithmParameters)


def test_a_second_run_replaces_it_with_the_same_uids(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], segmenter: Segmenter
) -> None:
    write_series(tmp_path / "in", hounsfield, SPACING)
    _, path = run(tmp_path, segmenter)
    first = pydicom.dcmread(path)
    (case,) = find_cases(tmp_path / "in", tmp_path / "out", BOTH)
    assert case.scan.problem is None
    assert predict_case(segmenter, case).error is None
    again = pydicom.dcmread(path)
    assert (first.SOPInstanceUID, first.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
    path.write_bytes(b"somebody else's")
    (case,) = find_cases(tmp_path / "in", tmp_path / "out", BOTH)
    assert "which this program did not write" in str(predict_case(segmenter, case).error)
    assert path.read_bytes() == b"somebody else's"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy (Debian: dicom3tools)")
@pytest.mark.parametrize("kind", ["single", "multi-frame"])
def test_dciodvfy_finds_no_error(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], segmenter: Segmenter, kind: str
) -> None:
    if kind == "single":
        write_series(tmp_path / "in", hounsfield, SPACING)
    else:
        write_enhanced(tmp_path / "in" / "file", hounsfield, SPACING)
    _, path = run(tmp_path, segmenter)
    shown = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    errors = [line for line in (shown.stdout + shown.stderr).splitlines() if line.startswith("Error")]
    assert errors == []
    assert "Segmentation" in shown.stdout + shown.stderr


def test_nifti_input_is_a_usage_error(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="not DICOM, which --save dicom-seg needs; leave that out"):
        find_cases(phantom_path, tmp_path, BOTH)
    volume = open_volume(phantom_path)
    mask = np.zeros(volume.geometry.shape, np.uint8, order="F")
    with pytest.raises(ResultError, match="a DICOM segmentation needs a DICOM scan; save nifti instead"):
        DicomSeg().write(segmentation_of(volume, mask), tmp_path / "x.seg.dcm")


def test_what_cannot_be_written_is_one_line_and_nothing_is_left(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "in", hounsfield, SPACING)
    volume = open_volume(tmp_path / "in")
    mask = np.zeros(volume.geometry.shape, np.uint8, order="F")
    with pytest.raises(ResultError, match="no organ was found, and a DICOM segmentation cannot be empty"):
        DicomSeg().write(segmentation_of(volume, mask), tmp_path / "x.seg.dcm")
    mask[20:30, 20:30, 3:5] = 1
    with pytest.raises(ResultError, match=r"nowhere/x\.seg\.dcm: cannot be written .No such file"):
        DicomSeg().write(segmentation_of(volume, mask), tmp_path / "nowhere" / "x.seg.dcm")
    DicomSeg().write(segmentation_of(volume, mask), tmp_path / "x.seg.dcm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "x.seg.dcm"]
    assert json.loads(json.dumps(pydicom.dcmread(tmp_path / "x.seg.dcm").to_json_dict()))["00280008"]["Value"] == [2]
