"""DICOM in: series of every kind, and everything that scanners and archives do to them."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import data_store
import imagecodecs
import jpeg_ls
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from click.testing import CliRunner
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from app.cases import find_cases, require_ct
from app.cli import main
from app.errors import InputError, VolumeError
from app.results.dicom_seg import frames_of
from app.volumes import FindOptions, NameBy, Ready, Scan, dicom, dicom_series, find_scans, open_volume
from app.volumes.walk import first_bytes
from phantom import make_phantom
from phantom.dicom import OFFSET, SECONDARY, corners, uid, write_enhanced, write_series
from tests.nifti_files import read_volume, write_mask

SPACING = (4.0, 3.5, 20.0)
SHAPE = (72, 80, 12)
DIRECTIONS = [np.array(axis) * sign for axis in ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)) for sign in (1, -1)]
PLANES = [(*a, *b) for a, b in itertools.permutations(DIRECTIONS, 2) if not np.dot(a, b)]


@pytest.fixture(scope="module")
def hounsfield() -> NDArray[np.int16]:
    return make_phantom(SHAPE, SPACING)[0]


def only(folder: pathlib.Path) -> Scan:
    (scan,) = find_scans(folder)
    return scan


def one_problem(folder: pathlib.Path) -> str:
    problem = only(folder).problem
    assert problem is not None
    assert "\n" not in problem
    with pytest.raises(VolumeError, match="series003"):
        only(folder).open()
    return problem


def canonical(image: nib.Nifti1Image) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Voxels and affine in RAS order, by nibabel alone."""
    turned = nib.as_closest_canonical(image)
    return np.asarray(turned.dataobj), turned.affine


@pytest.mark.parametrize(
    "syntax",
    [
        *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
        *(RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless),
    ],
    ids=lambda syntax: syntax.name,
)
def test_every_transfer_syntax(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], syntax: str) -> None:
    write_series(tmp_path, hounsfield, SPACING, syntax=syntax)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))
    assert open_volume(tmp_path).geometry.spacing_zyx_mm == pytest.approx(SPACING[::-1])


def in_jpeg_ls(pixels: NDArray[np.uint16]) -> bytes:
    return bytes(jpeg_ls.encode_buffer(pixels.tobytes(), *pixels.shape, 1, 16))


def in_jpeg_2000(pixels: NDArray[Any]) -> bytes:
    """Of signed pixels, the stream says so."""
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=16))


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "overlay in the high bits"])
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLSLossless, in_jpeg_ls),
        (JPEG2000Lossless, in_jpeg_2000),
        (JPEG2000Lossless, lambda pixels: in_jpeg_2000(pixels.view(np.int16))),
    ],
    ids=["JPEG-LS", "JPEG 2000", "signed JPEG 2000"],
)
def test_compressed_values_are_as_wide_as_the_header_says(
    tmp_path: pathlib.Path,
    hounsfield: NDArray[np.int16],
    syntax: str,
    encode: Callable[[NDArray[np.uint16]], bytes],
    signed: bool,
) -> None:
    """As DCMTK writes JPEG-LS: 16 bits in the stream, 12 in the header."""
    for path in write_series(tmp_path, hounsfield, SPACING):
        one = pydicom.dcmread(path)
        stored = one.pixel_array.astype(np.int32) - OFFSET * signed
        wide = (stored & 0xFFF | (0 if signed else 0x8000)).astype(np.uint16)
        one.BitsStored, one.HighBit, one.PixelRepresentation = 12, 11, int(signed)
        one.RescaleIntercept = 0 if signed else -OFFSET
        one.PixelData = pydicom.encaps.encapsulate([encode(wide)])
        one["PixelData"].VR, one.file_meta.TransferSyntaxUID = "OB", syntax
        one.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


def test_enhanced_multi_frame(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_enhanced(tmp_path / "all in one", hounsfield, SPACING)
    np.testing.assert_array_equal(read_volume(tmp_path / "all in one"), hounsfield.transpose(2, 1, 0))
    assert open_volume(tmp_path).geometry.spacing_zyx_mm == pytest.approx(SPACING[::-1])


def test_there_are_24_planes() -> None:
    assert len(PLANES) == 24


@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_every_direction_lies_where_the_patient_is_and_as_dcm2niix_has_it(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], plane: tuple[float, ...]
) -> None:
    write_series(tmp_path / "in", hounsfield, SPACING, orientation=plane)
    volume = open_volume(tmp_path / "in")
    mask = np.zeros(volume.geometry.shape, np.uint8, order="F")
    volume.geometry.orient(mask)[...] = read_volume(tmp_path / "in") > 0
    write_mask(mask, volume, tmp_path / "mask.nii.gz")
    (tmp_path / "out").mkdir()
    dcm2niix = pathlib.Path(sys.executable).with_name("dcm2niix")
    command = [str(dcm2niix), *["-f", "scan", "-z", "n", "-b", "n", "-o"], str(tmp_path / "out"), str(tmp_path / "in")]
    subprocess.run(command, check=True, capture_output=True)
    oracle, affine = canonical(nib.load(tmp_path / "out" / "scan.nii"))
    ours, our_affine = canonical(nib.load(tmp_path / "mask.nii.gz"))
    np.testing.assert_allclose(our_affine, affine, atol=1e-3)
    np.testing.assert_array_equal(ours, oracle > 0)


def test_the_same_patient_as_nifti_gets_the_same_mask(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], tiny_weights: pathlib.Path
) -> None:
    """Column direction -1 too: 0 voxels differ."""
    write_series(tmp_path / "in" / "a" / "b", hounsfield, SPACING, series="one", number=1)
    write_series(tmp_path / "in" / "c", hounsfield[:, ::-1, ::-1], SPACING, (1, 0, 0, 0, -1, 0), series="two", number=2)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])
    nib.save(nib.Nifti1Image(hounsfield, affine), tmp_path / "in" / "nifti_0000.nii.gz")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "out" / "run_log.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["done"] * 3
    assert [record.get("series_uid") for record in records] == [None, uid("one"), uid("two")]
    plain, first, second = (nib.load(tmp_path / "out" / f"{record['case']}.nii.gz") for record in records)
    np.testing.assert_array_equal(canonical(first)[0], canonical(plain)[0])
    np.testing.assert_array_equal(canonical(second)[0], canonical(plain)[0])
    assert len(np.unique(plain.dataobj)) > 2


# What goes wrong


def test_a_missing_slice_is_refused_with_its_place(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, SPACING, skip=[4])
    assert "slices are 20 mm apart, but not from 60.0 to 100.0 mm along their normal (gaps: 1)" in one_problem(tmp_path)


def test_two_distances_are_refused(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, (4.0, 3.5, 2.5), skip=[7, 9])
    assert "slices are 2.5 mm apart, but not from 15.0 to 20.0, 20.0 to 25.0 mm" in one_problem(tmp_path)


def test_a_tilted_gantry_is_a_shear(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, SPACING, tilt_mm=5.0)
    assert open_volume(tmp_path).warnings == (dicom.TILTED,)
    geometry = open_volume(tmp_path).geometry
    expected = corners(SHAPE[2], SPACING[2], (1, 0, 0, 0, 1, 0), 5.0) * (-1, -1, 1)
    for z in (0, SHAPE[2] - 1):
        np.testing.assert_allclose((geometry.affine @ [0, 0, z, 1])[:3], expected[z], atol=1e-4)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))
    volume = open_volume(tmp_path)
    write_mask(np.zeros(geometry.shape, np.uint8, order="F"), volume, tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, geometry.affine, atol=1e-4)


def test_slices_beside_the_line_are_refused(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    paths = write_series(tmp_path, hounsfield, SPACING)
    one = pydicom.dcmread(paths[5])
    one.ImagePositionPatient[0] += 12
    one.save_as(paths[5])
    assert "its slices are offset sideways from each other" in one_problem(tmp_path)


def test_copies_are_dropped_and_said(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path / "a", hounsfield, SPACING)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "0.dcm").unlink()
    volume = open_volume(tmp_path)
    assert volume.warnings[0] == "11 slices occur twice; one of each was used"
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


def test_a_copy_with_damaged_pixels_ends_no_run(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], tiny_weights: pathlib.Path
) -> None:
    """Which of the two is the copy is decided by their pixels."""
    write_series(tmp_path / "in" / "good", hounsfield, SPACING, series="good", number=1)
    paths = write_series(tmp_path / "in" / "bad", hounsfield, SPACING)
    copy = paths[2].with_name("copy")
    copy.write_bytes(paths[2].read_bytes()[:-3000])
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    records = [json.loads(line) for line in (tmp_path / "out" / "run_log.jsonl").read_text().splitlines()]
    assert records[0]["status"] == "done"
    assert all("unexpected" not in (record["error"] or "") for record in records)


@pytest.mark.parametrize("acquisitions", [(1, 2), (0, 0)], ids=["numbered", "not numbered"])
def test_two_phases_under_one_uid_are_two_cases(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], acquisitions: tuple[int, int]
) -> None:
    later = np.where(hounsfield > 50, hounsfield + 60, hounsfield).astype(np.int16)
    for phase, (volume, acquisition) in enumerate(zip((hounsfield, later), acquisitions, strict=True)):
        paths = write_series(tmp_path, volume, SPACING, acquisition=acquisition, name=f"{phase}_{{}}.dcm")
        for path in paths if phase else []:
            one = pydicom.dcmread(path)
            one.InstanceNumber += 100
            one.save_as(path)
    first, second = find_scans(tmp_path)
    assert first.name != second.name
    assert first.name[:-8] == second.name[:-8] == f"series003_{first.name[10:18]}_"
    for scan, expected in ((first, hounsfield), (second, later)):
        for z, plane in scan.open().slices():
            np.testing.assert_array_equal(plane, expected[:, :, z].T)


def test_an_acquisition_number_per_slice_splits_nothing(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    for i, path in enumerate(write_series(tmp_path, hounsfield, SPACING)):
        one = pydicom.dcmread(path)
        one.AcquisitionNumber = i + 1
        one.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


def test_two_series_in_one_folder_and_what_is_no_ct(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, SPACING, name="a{}")
    write_series(tmp_path, hounsfield[::2], (8.0, 3.5, 20.0), series="two", number=4, name="b{}")
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path, hounsfield[:, :, :1], series="scout", number=1, name="c{}", ImageType=scout)
    write_series(tmp_path, hounsfield[:, :, :3], series="mr", number=5, name="d{}", Modality="MR")
    write_series(tmp_path, hounsfield[:, :, :3], series="shot", number=6, name="e{}", SOPClassUID=SECONDARY)
    write_series(tmp_path, hounsfield[:, :, :1], series="few", number=7, name="f{}")
    (tmp_path / "notes.txt").write_text("no DICOM, whatever its length" * 100)
    found = {scan.name[:9]: scan for scan in find_scans(tmp_path)}
    assert {name for name, scan in found.items() if not (scan.problem or scan.not_ct)} == {"series003", "series004"}
    assert str(found["series001"].not_ct).endswith("a localizer")
    assert str(found["series005"].not_ct).endswith("modality MR, not CT")
    assert str(found["series006"].not_ct).endswith("a secondary capture or another object, no CT image")
    assert str(found["series007"].not_ct).endswith("a single image, not a volume")


def test_a_localizer_inside_the_series_and_orientations_mixed_are_told_apart(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    write_series(tmp_path, hounsfield, SPACING, name="a{}")
    write_series(tmp_path, hounsfield[:, :, :1], name="b{}", ImageType=["DERIVED", "SECONDARY", "LOCALIZER"])
    write_series(tmp_path, hounsfield, SPACING, (1, 0, 0, 0, 0, -1), name="c{}")
    scans = find_scans(tmp_path)
    assert sum(scan.not_ct is not None for scan in scans) == 1
    assert sum(scan.problem is None and scan.not_ct is None for scan in scans) == 2
    assert len({scan.name for scan in scans}) == 3


def test_empty_uids_are_told_apart_by_folder(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    for folder in "ab":
        write_series(tmp_path / folder, hounsfield, SPACING, SeriesInstanceUID="", StudyInstanceUID="")
    assert [scan.problem for scan in find_scans(tmp_path)] == [None, None]
    np.testing.assert_array_equal(read_volume(tmp_path / "a"), hounsfield.transpose(2, 1, 0))


def test_a_missing_rescale_is_a_warning(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, SPACING, RescaleSlope=None, RescaleIntercept=None)
    assert open_volume(tmp_path).warnings == ("no rescale intercept; stored values were taken for Hounsfield units",)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0) + 1024)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_becomes_air(tmp_path: pathlib.Path, syntax: str) -> None:
    stored = np.full((40, 32, 3), -2000, np.int16)
    stored[8:30, 8:30] = 40
    write_series(
        tmp_path,
        (stored - 1024).astype(np.int16),  # the writer adds 1024
        syntax=syntax,
        PixelRepresentation=1,
        PixelPaddingValue=-2000,
        RescaleIntercept="0",
    )
    expected = np.where(stored == -2000, -1024, stored).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_volume(tmp_path), expected)


@pytest.mark.parametrize(("value", "limit"), [(1024, None), (0, 4095)], ids=["water", "all values"])
def test_tissue_is_no_padding_whatever_the_header_says(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], value: int, limit: int | None
) -> None:
    for path in write_series(tmp_path, hounsfield, SPACING):
        one = pydicom.dcmread(path)
        one.add_new("PixelPaddingValue", "US", value)
        if limit is not None:
            one.add_new("PixelPaddingRangeLimit", "US", limit)
        one.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


def test_a_slope_of_its_own_for_every_slice(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    for i, path in enumerate(write_series(tmp_path, hounsfield, SPACING)):
        one = pydicom.dcmread(path)
        one.RescaleSlope, one.RescaleIntercept = str(1 + 0.5 * i), "-100"
        one.save_as(path)
    for z, plane in open_volume(tmp_path).slices():
        expected = (hounsfield[:, :, z].T.astype(float) + 1024) * (1 + 0.5 * z) - 100
        np.testing.assert_allclose(plane, expected, atol=0.51)


@pytest.mark.parametrize("change", ["cut", "text", "no pixels", "no position"])
def test_a_damaged_file_is_one_line_and_the_other_series_goes_on(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], tiny_weights: pathlib.Path, change: str
) -> None:
    write_series(tmp_path / "in" / "good", hounsfield, SPACING, series="good", number=1)
    paths = write_series(tmp_path / "in" / "bad", hounsfield, SPACING)
    if change == "cut":
        paths[3].write_bytes(paths[3].read_bytes()[:-3000])
    elif change == "text":
        paths[3].write_bytes(paths[3].read_bytes()[:132] + b"no elements follow" * 20)
    else:
        one = pydicom.dcmread(paths[3])
        del one["PixelData" if change == "no pixels" else "ImagePositionPatient"]
        one.save_as(paths[3])
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    records = [json.loads(line) for line in (tmp_path / "out" / "run_log.jsonl").read_text().splitlines()]
    assert sum(record["status"] == "done" for record in records) == 1
    failed = [record["error"] for record in records if record["status"] == "failed"]
    assert any("series003" in line or str(paths[3]) in line for line in failed)
    assert all("\n" not in line and "unexpected" not in line for line in failed)
    if change == "no position":
        assert any(line.endswith("no ImagePositionPatient); copy or export it again") for line in failed)


def test_a_compressed_slice_that_is_cut_is_called_so(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    path = write_series(tmp_path, hounsfield, SPACING, syntax=RLELossless)[3]
    path.write_bytes(path.read_bytes()[:-3000])
    (scan,) = find_scans(tmp_path)
    with pytest.raises(VolumeError, match="End of file") as caught, contextlib.closing(scan.open().slices()) as slices:
        dict(slices)
    assert str(path) in str(caught.value)


def test_list_series_says_what_would_be_done_and_does_nothing(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "in", hounsfield, SPACING)
    write_series(tmp_path / "in", hounsfield[:, :, :3], series="mr", number=5, name="m{}", Modality="MR")
    result = CliRunner().invoke(main, [str(tmp_path / "in"), str(tmp_path / "out"), "--list-series"])
    assert result.exit_code == 0
    first, second = result.output.splitlines()
    assert first.startswith("series003_")
    assert first.endswith("to be segmented")
    assert second.endswith("modality MR, not CT")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_any_ct_is_a_usage_error(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path / "in", hounsfield[:, :, :3], Modality="MR")
    result = CliRunner().invoke(main, [str(tmp_path / "in"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_names_are_patient_safe_and_a_case_can_be_pickled(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "Phantom^Otto", hounsfield, SPACING)
    (case,) = find_cases(tmp_path / "Phantom^Otto", tmp_path / "out")
    assert case.name.startswith("series003_")
    assert "Otto" not in case.outputs["nifti"].name
    again = pickle.loads(pickle.dumps(case)).scan.open()
    assert again.geometry.shape == SHAPE


def test_without_pydicom_one_line_says_what_to_install(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path, hounsfield, SPACING)
    monkeypatch.setitem(sys.modules, "app.volumes.dicom_series", None)
    monkeypatch.delattr("app.volumes.dicom_series", raising=False)
    with pytest.raises(InputError, match=r"holds DICOM; install it with DICOM support: hrnet-ocr-abdomen\[dicom\]"):
        find_scans(tmp_path)


def test_files_without_a_preamble_and_other_names(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    for i, path in enumerate(write_series(tmp_path, hounsfield, SPACING, name="IM{}", syntax=ImplicitVRLittleEndian)):
        data = path.read_bytes()
        if i % 2:
            one = pydicom.dcmread(path)
            del one.file_meta
            one.preamble = None
            pydicom.dcmwrite(path, one, implicit_vr=True, little_endian=True, enforce_file_format=False)
            assert path.read_bytes()[:4] in dicom.BARE
        assert len(data) > 132
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


# Taken from the packages' folders: pydicom's own function would download more from the network.
CORPUS = [
    path
    for package in (pydicom.data, data_store)
    for path in sorted(pathlib.Path(package.__file__).parent.rglob("*"))
    if path.is_file() and dicom.is_dicom(first_bytes(path))
]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pydicoms_own_files_give_slices_or_a_line(tmp_path: pathlib.Path) -> None:
    """Each file of pydicom and pydicom-data alone."""
    tried = opened = 0
    for number, path in enumerate(CORPUS):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(path, folder / "a")
        for scan in find_scans(folder):
            tried += 1
            line = scan.problem or scan.not_ct
            if line is None:
                opened += sum(1 for _ in scan.open().slices()) > 0
            else:
                assert "\n" not in line
                assert str(folder) in line
    assert tried >= len(CORPUS) > 50
    assert opened >= 1  # the enhanced CT of pydicom-data


# On request


@pytest.mark.parametrize("unit", ["MGML", "Z_EFF", "ed"])
@pytest.mark.parametrize("frames", ["single", "multi"])
def test_maps_of_other_units_are_no_ct(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], unit: str, frames: str
) -> None:
    """Scanners with several energies store maps of iodine, atomic number and electron density as CT."""
    if frames == "single":
        write_series(tmp_path, hounsfield, SPACING, RescaleType=unit)
    else:
        write_enhanced(tmp_path / "file", hounsfield, SPACING)
        one = pydicom.dcmread(tmp_path / "file")
        one.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = unit
        one.save_as(tmp_path / "file")
    reason = str(only(tmp_path).not_ct)
    assert f"values in {unit.upper()} (RescaleType), not Hounsfield units" in reason


@pytest.mark.parametrize("unit", ["HU", "US", "HU_MOD", "hounsfield"])
def test_units_that_may_be_hounsfield_are(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], unit: str) -> None:
    write_series(tmp_path, hounsfield, SPACING, RescaleType=unit)
    assert only(tmp_path).open().warnings == ()


def test_protocols_and_coloured_images_of_class_ct_are_no_failure(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "ct", hounsfield, SPACING)
    screen = ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]
    nowhere: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    write_series(tmp_path / "protocol", hounsfield[..., :2], SPACING, series="protocol", ImageType=screen, **nowhere)
    write_series(tmp_path / "map", hounsfield, SPACING, series="map", PhotometricInterpretation="PALETTE COLOR")
    states = {str(scan.not_ct or scan.problem).rpartition(": ")[2] for scan in find_scans(tmp_path)}
    expected = {"None", "an image without a place, such as a protocol or a picture of the screen", "a colour image"}
    assert states == expected
    assert not any(scan.problem for scan in find_scans(tmp_path))


def test_a_screen_save_in_the_scans_own_series_fails_nothing(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    """Such as a dose page, which may keep the pixel spacing of the scan that it was made from."""
    write_series(tmp_path, hounsfield, SPACING)
    page: dict[str, Any] = {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "ImagePositionPatient": None}
    write_series(tmp_path, hounsfield[..., :1], SPACING, acquisition=9, name="page{}.dcm", **page)
    scan, screen = sorted(find_scans(tmp_path), key=lambda scan: scan.not_ct is not None)
    assert (scan.problem, str(screen.not_ct).rpartition(": ")[2]) == (None, "a picture of the screen")
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


def test_itk_reads_the_mask_of_a_scan_whose_directions_were_rounded(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    """An oblique scan; rounded to three decimals, rows and columns are no longer quite at right angles."""
    rows, columns = np.array((0.9781, 0.0613, 0.1987)), np.array((-0.1, 0.976, 0.1912))
    columns -= columns @ rows * rows / (rows @ rows)
    exact = [*(rows / np.linalg.norm(rows)), *(columns / np.linalg.norm(columns))]
    for path in write_series(tmp_path / "in", hounsfield, SPACING, orientation=exact):
        one = pydicom.dcmread(path)
        one.ImageOrientationPatient = [f"{value:.3f}" for value in exact]
        one.save_as(path)
    volume = only(tmp_path / "in").open()
    axes = volume.geometry.affine[:3, :3] / np.linalg.norm(volume.geometry.affine[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() > 2e-4
    write_mask(np.zeros(SHAPE, np.uint8, order="F"), volume, tmp_path / "mask.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))
    corner = volume.geometry.affine @ [*(n - 1 for n in SHAPE), 1]
    found = image.TransformIndexToPhysicalPoint([n - 1 for n in SHAPE])
    np.testing.assert_allclose(np.array(found) * (-1, -1, 1), corner[:3], atol=0.5)


def test_frames_without_places_are_a_failed_case_and_no_single_image(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    """A whole scan in a file of the class for single slices."""
    write_series(tmp_path / "ct", hounsfield, SPACING)
    (path,) = write_series(tmp_path / "cone beam", hounsfield[..., :1], SPACING, series="beam")
    one = pydicom.dcmread(path)
    one.NumberOfFrames, one.PixelData = 20, one.PixelData * 20
    one.save_as(path)
    problems = [scan.problem for scan in find_scans(tmp_path) if scan.problem]
    assert len(problems) == 1
    assert "20 frames without a place each" in str(problems[0])


@pytest.mark.parametrize("how", ["derivation image", "private"])
def test_only_a_frames_own_items_say_where_it_lies(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], how: str
) -> None:
    write_enhanced(tmp_path / "all.dcm", hounsfield, SPACING)
    one, other = pydicom.dcmread(tmp_path / "all.dcm"), pydicom.Dataset()
    other.ImagePositionPatient, other.PixelSpacing, other.RescaleIntercept = [7, 7, 7], [1, 1], 5
    for frame in one.PerFrameFunctionalGroupsSequence:
        if how == "private":
            frame.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [other])
        else:
            frame.DerivationImageSequence = [other]
    one.save_as(tmp_path / "all.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))
    assert open_volume(tmp_path).geometry.spacing_zyx_mm == pytest.approx(SPACING[::-1])


@pytest.mark.parametrize("frames", [11, 13])
def test_frames_and_places_that_are_not_as_many_are_refused(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], frames: int
) -> None:
    write_enhanced(tmp_path / "all.dcm", hounsfield, SPACING)
    one = pydicom.dcmread(tmp_path / "all.dcm")
    one.NumberOfFrames = frames
    one.save_as(tmp_path / "all.dcm")
    [problem] = [scan.problem for scan in find_scans(tmp_path)]
    assert f"{frames} frames, but places of 12" in str(problem)


@pytest.mark.parametrize(
    ("element", "value", "said"),
    [
        ("PixelSpacing", b"2,5\\1,5 ", "expected 2 numbers"),
        ("ImagePositionPatient", b"1.0\\2 ", "expected 3 numbers"),
        ("RescaleIntercept", b"-1024,0 ", "expected 1 numbers"),
    ],
)
def test_a_value_that_is_no_number_is_named(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], element: str, value: bytes, said: str
) -> None:
    write_raw(write_series(tmp_path, hounsfield, SPACING), element, value)
    problem = str(only(tmp_path).problem)
    assert f"{element} is " in problem
    assert said in problem


@pytest.mark.parametrize(
    ("element", "value"), [("PixelPaddingValue", b"\0\0\1\0"), ("PixelPaddingValue", b"n/a "), ("Modality", b"ct")]
)
def test_a_value_of_another_form_stops_nothing(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], element: str, value: bytes
) -> None:
    write_raw(write_series(tmp_path, hounsfield, SPACING), element, value, "LO" if value.endswith(b" ") else None)
    np.testing.assert_array_equal(read_volume(tmp_path), hounsfield.transpose(2, 1, 0))


def write_raw(paths: list[pathlib.Path], element: str, value: bytes, vr: str | None = None) -> None:
    """Give an element of some files a value byte for byte, which pydicom would not write."""
    tag = pydicom.tag.Tag(element)
    vr = vr or pydicom.datadict.dictionary_VR(tag).partition(" ")[0]
    for path in paths:
        one = pydicom.dcmread(path)
        one[tag] = RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
        one.save_as(path)


def test_a_file_that_stands_for_a_folder_is_said(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    (one, *_) = write_series(tmp_path, hounsfield, SPACING)
    for name in ("DICOMDIR", "dicomdir"):  # as file systems of CDs show it
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
        with pytest.raises(InputError, match=f"{name}: only lists the files beside it; give the folder that it lies"):
            find_cases(tmp_path / name, tmp_path / "out")
    assert len(find_scans(tmp_path)) == 1
    with pytest.raises(InputError, match=r"a single image, not a volume\); give the folder of its series"):
        require_ct(find_cases(one, tmp_path / "out"), one)


def test_projections_through_several_slices_are_a_warning(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]
) -> None:
    write_series(tmp_path, hounsfield, SPACING, ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "MIP"])
    (warning,) = only(tmp_path).open().warnings
    assert "projections through several (MIP in ImageType)" in warning


def test_a_rescale_that_some_slices_lack_is_refused(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    for path in write_series(tmp_path, hounsfield, SPACING)[3:5]:
        one = pydicom.dcmread(path)
        del one.RescaleIntercept
        one.save_as(path)
    assert "2 of 12 slices have no rescale intercept, the others do; export it again" in one_problem(tmp_path)


@pytest.mark.parametrize("number", [b"3A", b"99999999999999999999", b"2147483647"])
def test_a_series_number_that_is_none_stops_nothing(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], number: bytes
) -> None:
    for path in write_series(tmp_path, hounsfield, SPACING):
        content = path.read_bytes()
        element = b"\x20\0\x11\0IS\2\0" + b"3 "
        assert element in content
        padded = number + b" " * (len(number) % 2)
        path.write_bytes(content.replace(element, element[:6] + bytes([len(padded), 0]) + padded))
    scan = only(tmp_path)
    assert scan.name.startswith("series000_")
    assert scan.open().geometry.shape == SHAPE


@pytest.mark.parametrize(("element", "value"), [("Rows", 0), ("RescaleSlope", "0")])
def test_a_slice_without_pixels_or_values_is_one_line(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], element: str, value: object
) -> None:
    for path in write_series(tmp_path, hounsfield, SPACING):
        one = pydicom.dcmread(path)
        setattr(one, element, value)
        one.save_as(path)
    problem = str(only(tmp_path).problem)
    assert "12 files cannot be read as a CT slice" in problem
    assert element.lower() in problem.lower()


def test_files_that_lost_their_preamble_alone_are_read(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    """Their first element is the file's own header's."""
    for i, path in enumerate(write_series(tmp_path, hounsfield, SPACING)):
        content = path.read_bytes()
        path.unlink()
        (tmp_path / f"image_{chr(97 + i)}").write_bytes(content[132:])
    volume = only(tmp_path).open()
    planes = dict(volume.slices())
    np.testing.assert_array_equal(volume.geometry.restore(np.stack([planes[z] for z in range(12)])), hounsfield)


def test_gaps_are_filled_on_request_and_said(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, SPACING, skip=[4, 8], tilt_mm=2.0)
    (scan,) = find_scans(tmp_path, FindOptions(resample_gaps=True))
    volume = scan.open()
    assert volume.geometry.shape == SHAPE
    assert any("2 of 12 slices were interpolated: slices are 20 mm apart, but not from" in w for w in volume.warnings)
    expected = hounsfield.astype(np.float64)
    for z in (4, 8):
        expected[:, :, z] = (expected[:, :, z - 1] + expected[:, :, z + 1]) / 2
    planes = dict(volume.slices())
    found = volume.geometry.restore(np.stack([planes[z] for z in range(12)]))
    np.testing.assert_array_equal(found, np.rint(expected))
    assert isinstance(volume, dicom.DicomVolume)
    assert volume.planes_of_files() == [z for z in range(12) if z not in (4, 8)]
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[:, :, 4:7] = 2
    frames = frames_of(mask, volume)
    assert [z for z in range(len(frames)) if frames[z].any()] == [4, 5]  # slices 5 and 6, of which there are files


def test_two_distances_become_the_usual_one_on_request(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path, hounsfield, (4.0, 3.5, 2.5), skip=[6, 8, 10])
    (scan,) = find_scans(tmp_path, FindOptions(resample_gaps=True))
    volume = scan.open()
    assert volume.geometry.shape == SHAPE
    assert volume.geometry.spacing_zyx_mm[0] == pytest.approx(2.5)


def test_more_slices_than_there_are_will_not_be_made_up(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    far = np.repeat(hounsfield[:8, :8, :1], 40, axis=2)
    write_series(tmp_path, far, (4.0, 3.5, 2.5), skip=range(5, 35))
    (scan,) = find_scans(tmp_path, FindOptions(resample_gaps=True))
    assert "--resample-gaps would invent more slices than exist" in str(scan.problem)


def test_names_by_uid_accession_or_folder(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    write_series(tmp_path / "Phase 1", hounsfield, SPACING, AccessionNumber="A/17")
    write_series(tmp_path / "late", hounsfield, SPACING, series="two", number=4)

    def names(name_by: NameBy) -> list[str]:
        return sorted(scan.name for scan in find_scans(tmp_path, FindOptions(name_by=name_by)))

    assert names("uid") == sorted([uid("one"), uid("two")])
    by_number = names("number")
    assert names("accession") == sorted([f"A_17_{by_number[0]}", by_number[1]])  # the second has no accession number
    hashes = [name[-8:] for name in by_number]
    assert names("folder") == [f"Phase_1_{hashes[0]}", f"late_{hashes[1]}"]


@pytest.mark.parametrize("name_by", ["number", "uid", "accession", "folder"])
def test_a_name_stays_a_series_own_when_others_come_and_go(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], name_by: NameBy
) -> None:
    """Three patients with one folder name, accession and series number each."""

    def names() -> dict[str | None, str]:
        return {scan.series_uid: scan.name for scan in find_scans(tmp_path, FindOptions(name_by=name_by))}

    alone: dict[str | None, str] = {}
    for patient in "bca":
        write_series(tmp_path / patient / "CT", hounsfield[:, :, :3], SPACING, series=patient, AccessionNumber="7")
        now = names()
        assert alone.items() <= now.items()
        alone = now
    assert len(set(alone.values())) == 3
    shutil.rmtree(tmp_path / "b")
    assert names().items() <= alone.items()


def test_parts_of_one_series_keep_their_names_too(tmp_path: pathlib.Path, hounsfield: NDArray[np.int16]) -> None:
    """Two phases and two patients under one UID, and a localizer: none takes another's name when one comes or goes."""
    parts: dict[str, dict[str, Any]] = {
        "late": {"acquisition": 9, "AcquisitionTime": "100500"},
        "early": {"acquisition": 2, "AcquisitionTime": "100100"},
        "other": {"PatientID": "P2"},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    }

    def names() -> dict[str, str]:
        """Of every part that is there, by its mean."""
        return {
            str(round(float(np.mean([plane.mean() for _, plane in scan.open().slices()])), 3)): scan.name
            for scan in find_scans(tmp_path)
            if isinstance(scan.state, Ready)
        }

    seen: dict[str, set[str]] = {}  # name -> what it stood for
    for there in (("late",), ("late", "early"), tuple(parts), ("early", "other"), ("localizer", "late", "early")):
        for number, (part, changes) in enumerate(parts.items()):
            shutil.rmtree(tmp_path / part, ignore_errors=True)
            if part in there:
                write_series(tmp_path / part, hounsfield[:, :, : 5 + number], SPACING, **changes)
        for mean, name in names().items():
            if len(there) > 1:  # alone, a part has the series' own name
                seen.setdefault(name, set()).add(mean)
    assert len(seen) >= 3
    assert all(len(means) == 1 for means in seen.values()), seen


def test_many_files_are_read_by_several_processes_to_the_same_series(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "a", hounsfield, SPACING)
    write_series(tmp_path / "b", hounsfield, SPACING, series="two", Modality="MR")
    (tmp_path / "c").write_bytes(bytes(128) + b"DICM" + b"damaged")
    seen: list[tuple[int, int]] = []
    options = FindOptions(on_header=lambda done, total: seen.append((done, total)))
    alone = [(scan.name, scan.problem, scan.not_ct) for scan in find_scans(tmp_path, options)]
    monkeypatch.setattr(dicom_series, "MANY_FILES", 8)
    together = [(scan.name, scan.problem, scan.not_ct) for scan in find_scans(tmp_path)]
    assert alone == together
    assert seen == [(i, 25) for i in range(1, 26)]


def test_the_options_reach_the_command_line(
    tmp_path: pathlib.Path, hounsfield: NDArray[np.int16], tiny_weights: pathlib.Path
) -> None:
    write_series(tmp_path / "in" / "late", hounsfield, SPACING, skip=[3])
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tiny_weights), "--device", "cpu"]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    (failure,) = (tmp_path / "out").glob("*.failed.json")
    failure.unlink()  # under another name
    outputs = ("--save", "dicom-seg", "--save", "rtstruct", "--save", "dicom-sr", "--seg-type", "labelmap")
    assert CliRunner().invoke(main, [*arguments, "--resample-gaps", "--name-by", "folder", *outputs]).exit_code == 0
    found = {re.sub("^late_[0-9a-f]{8}", "late", path.name): path for path in (tmp_path / "out").iterdir()}
    assert set(found) == {"run_log.jsonl", "late.seg.dcm", "late.rtstruct.dcm", "late.sr.dcm"}
    assert pydicom.dcmread(found["late.seg.dcm"]).SegmentationType == "LABELMAP"
