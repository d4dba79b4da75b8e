"""Structure sets, reports and label maps: read back by other programs, voxel by voxel and number by number."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import InputError
from app.organs import ORGANS, Organ
from app.results import Segmented, make_results
from app.results.outlines import outlines
from app.volumes import Volume, open_volume
from phantom import make_phantom
from phantom.dicom import AXIAL, write_enhanced, write_series

SPACING = (3.0, 2.5, 12.0)
SHAPE = (100, 104, 20)
FLIPPED = (1.0, 0, 0, 0, -1.0, 0)
OBLIQUE = (0.96, 0.28, 0, -0.28, 0.96, 0)
DICOM = ("dicom-seg", "rtstruct", "dicom-sr")
SHAS = {"tiny.safetensors": "0" * 64}


@pytest.fixture(scope="module")
def labels() -> NDArray[np.uint8]:
    """The phantom's organs, and in one slice a spleen with holes, an island in one of them, and a diagonal neck."""
    found = np.asfortranarray(make_phantom(SHAPE, SPACING)[1].astype(np.uint8))
    plane = found[:, :, 5]
    plane[20:60, 20:60] = Organ.SPLEEN
    plane[30:35, 30:35] = plane[32:36, 45:50] = plane[45:55, 25:55] = 0
    plane[48:52, 30:50] = Organ.SPLEEN
    plane[60:64, 60:64] = Organ.SPLEEN  # touches the rest by one corner
    return found


def write_kind(folder: pathlib.Path, kind: str) -> None:
    """The phantom as a series of single slices, or as one multi-frame file."""
    hounsfield = make_phantom(SHAPE, SPACING)[0]
    if kind == "single":
        write_series(folder, hounsfield, SPACING)
    else:
        write_enhanced(folder / "file", hounsfield, SPACING)


def write_all(folder: pathlib.Path, volume: Volume, mask: NDArray[np.uint8], seg_type: str = "binary") -> pathlib.Path:
    """Every output of a mask, as folder/case.*; the pattern of their names."""
    folder.mkdir(exist_ok=True)
    pattern = folder / "case.nii.gz"
    for result in make_results(("nifti", *DICOM), seg_type).values():
        result.write(Segmented(volume, mask, "tiny", "1", SHAS), result.path(pattern))
    return folder / "case"


def run(*command: object) -> str:
    """What a program says; its exit status must be 0."""
    shown = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout + shown.stderr


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if find_program(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def find_program(name: str) -> str | None:
    """A program of the virtual environment, or of the system."""
    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def same_place(image: nib.Nifti1Image, mask: nib.Nifti1Image, label: int) -> None:
    """An image is set at the voxels of a label, looked up by patient coordinates, and nowhere else."""
    found = np.asarray(image.dataobj) != 0
    wanted = np.argwhere(np.asarray(mask.dataobj) == label)
    to_image = np.linalg.inv(image.affine) @ mask.affine
    index = np.c_[wanted, np.ones(len(wanted))] @ to_image.T
    nearest = np.rint(index[:, :3]).astype(int)
    assert np.abs(index[:, :3] - nearest).max() < 0.02
    assert found[tuple(nearest.T)].all()
    assert found.sum() == len(wanted)


@needs("plastimatch")
@pytest.mark.parametrize("orientation", [AXIAL, FLIPPED], ids=["axial", "flipped"])
def test_plastimatch_fills_the_structure_set_to_the_very_mask(
    tmp_path: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> None:
    write_series(tmp_path / "in", make_phantom(SHAPE, SPACING)[0], SPACING, orientation)
    name = write_all(tmp_path / "out", open_volume(tmp_path / "in"), labels)
    structures = name.with_suffix(".rtstruct.dcm")
    ct, filled = ("--referenced-ct", tmp_path / "in"), ("--output-prefix", tmp_path / "filled")
    run("plastimatch", "convert", "--input", structures, *ct, *filled, "--prefix-format", "nii.gz")
    for organ in ORGANS:
        image = nib.load(tmp_path / "filled" / f"{organ.meaning}.nii.gz")
        same_place(image, nib.load(name.with_suffix(".nii.gz")), organ)


@needs("segimage2itkimage")
@pytest.mark.parametrize("orientation", [AXIAL, FLIPPED, OBLIQUE], ids=["axial", "flipped", "oblique"])
def test_dcmqi_reads_the_segmentation_to_the_very_mask(
    tmp_path: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> None:
    write_series(tmp_path / "in", make_phantom(SHAPE, SPACING)[0], SPACING, orientation)
    name = write_all(tmp_path / "out", open_volume(tmp_path / "in"), labels)
    program, to = find_program("segimage2itkimage"), ("--outputDirectory", tmp_path, "-t", "nii")
    run(program, "--inputDICOM", name.with_suffix(".seg.dcm"), *to)
    for number, organ in enumerate(ORGANS, 1):
        same_place(nib.load(tmp_path / f"{number}.nii.gz"), nib.load(name.with_suffix(".nii.gz")), organ)


@needs("tid1500reader")
@pytest.mark.parametrize("kind", ["single", "multi-frame"])
def test_dcmqi_reads_the_volumes_of_the_report(tmp_path: pathlib.Path, labels: NDArray[np.uint8], kind: str) -> None:
    write_kind(tmp_path / "in", kind)
    name = write_all(tmp_path / "out", open_volume(tmp_path / "in"), labels)
    told = tmp_path / "report.json"
    run(find_program("tid1500reader"), "--inputDICOM", name.with_suffix(".sr.dcm"), "--outputMetadata", told)
    segmentation = pydicom.dcmread(name.with_suffix(".seg.dcm"))
    measured = json.loads(told.read_text())["Measurements"]
    assert [one["Finding"]["CodeValue"] for one in measured] == [organ.snomed for organ in ORGANS]
    for organ, one in zip(ORGANS, measured, strict=True):
        (item,) = one["measurementItems"]
        assert item["quantity"]["CodeMeaning"] == "Volume"
        assert item["units"]["CodeValue"] == "ml"
        assert float(item["value"]) == pytest.approx((labels == organ).sum() * np.prod(SPACING) / 1000, abs=1e-3)
        assert one["segmentationSOPInstanceUID"] == segmentation.SOPInstanceUID
        label = segmentation.SegmentSequence[one["ReferencedSegment"] - 1].SegmentLabel
        assert label == organ.meaning


@needs("dciodvfy")
@pytest.mark.parametrize("kind", ["single", "multi-frame"])
def test_dciodvfy_finds_no_error(tmp_path: pathlib.Path, labels: NDArray[np.uint8], kind: str) -> None:
    write_kind(tmp_path / "in", kind)
    name = write_all(tmp_path / "out", open_volume(tmp_path / "in"), labels)
    for extension, what in ((".seg.dcm", "Segmentation"), (".rtstruct.dcm", "RTStructureSet"), (".sr.dcm", "SR")):
        command = ["dciodvfy", name.with_suffix(extension)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (shown.stdout + shown.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert any(what in line for line in lines)


@pytest.mark.parametrize("orientation", [AXIAL, FLIPPED, OBLIQUE], ids=["axial", "flipped", "oblique"])
def test_a_label_map_holds_the_mask_in_less_space(
    tmp_path: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> None:
    write_series(tmp_path / "in", make_phantom(SHAPE, SPACING)[0], SPACING, orientation)
    volume = open_volume(tmp_path / "in")
    name = write_all(tmp_path / "map", volume, labels, "labelmap").with_suffix(".seg.dcm")
    plain = write_all(tmp_path / "plain", volume, labels).with_suffix(".seg.dcm")
    assert name.stat().st_size < 0.5 * plain.stat().st_size
    found = highdicom.seg.segread(name)
    assert str(found.SegmentationType) == "LABELMAP"
    array = found.get_volume(combine_segments=True)
    mask = nib.load(tmp_path / "map" / "case.nii.gz")
    to_lps = np.diag([-1.0, -1, 1, 1]) @ mask.affine
    grid = np.argwhere(labels != 0)
    index = np.rint((np.c_[grid, np.ones(len(grid))] @ (np.linalg.inv(array.affine) @ to_lps).T)[:, :3]).astype(int)
    np.testing.assert_array_equal(array.array[tuple(index.T)], labels[tuple(grid.T)])
    assert (array.array != 0).sum() == len(grid)
    assert pydicom.dcmread(name).SOPInstanceUID != pydicom.dcmread(plain).SOPInstanceUID


@given(st.integers(0, 2**63 - 1), st.integers(1, 9), st.integers(1, 9))
def test_an_outline_goes_around_every_pixel_of_any_region(seed: int, columns: int, rows: int) -> None:
    """By the even-odd rule, at the pixels' centres."""
    inside = np.random.default_rng(seed).random((columns, rows)) < 0.6
    rings = outlines(inside)
    filled = np.zeros_like(inside)
    for x, y in np.ndindex(inside.shape):
        crossings = 0
        for ring in rings:
            for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
                    crossings += 1
        filled[x, y] = crossings % 2
    np.testing.assert_array_equal(filled, inside)


def test_a_report_brings_its_segmentation_along() -> None:
    assert list(make_results(("dicom-sr", "nifti"))) == ["dicom-seg", "dicom-sr", "nifti"]


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "contourpy", None)
    for module in ("rtstruct", "outlines"):
        monkeypatch.delitem(sys.modules, f"app.results.{module}")
    with pytest.raises(InputError, match=r"--save rtstruct needs contourpy; install hrnet-ocr-abdomen"):
        make_results(("rtstruct",))
