"""NIfTI in and out: orientations, types, header traps, and the line that each bad file gives."""

from __future__ import annotations

import gzip
import itertools
import os
import pathlib
import re
import threading
from collections.abc import Callable, Generator
from typing import BinaryIO

import nibabel as nib
import numpy as np
import pydicom
import pytest

from app.errors import ResultError, VolumeError
from app.results import nifti_mask
from app.volumes import nifti, open_image, open_volume
from app.volumes.read_ahead import ReadAhead
from phantom.dicom import write_series
from tests.nifti_files import (
    SHAPE_LPS,
    SPACING_LPS,
    affine_lps,
    damaged,
    edit,
    put,
    read_volume,
    save,
    stored_as,
    volume_lps,
    write_mask,
)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "case_0000.nii.gz"


@pytest.mark.parametrize("code", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
def test_every_number_type(path: pathlib.Path, code: str) -> None:
    dtype = np.dtype(code)
    values = volume_lps().clip(0 if dtype.kind == "u" else -100, 109).astype(dtype)
    image = nib.Nifti1Image(values, affine_lps(), dtype=values.dtype)
    if code[0] == ">":
        image = nib.Nifti1Image(values, affine_lps(), image.header.as_byteswapped(">"))
    nib.save(image, path)
    assert nib.load(path).get_data_dtype() == dtype
    np.testing.assert_array_equal(read_volume(path), values.astype(np.int16).transpose(2, 1, 0))


@pytest.mark.parametrize(("dtype", "offset"), [(np.int32, 1 << 30), (np.uint32, 20_000_000), (np.float64, 10**9)])
def test_a_large_offset_costs_no_precision(path: pathlib.Path, dtype: type[np.generic], offset: int) -> None:
    save(path, volume_lps().astype(dtype) + dtype(offset))
    edit(path, put(112, 1.0, -float(offset)))  # scl_slope, scl_inter
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


def test_values_beyond_int16_are_clipped(path: pathlib.Path) -> None:
    volume = np.zeros((3, 3, 3), np.int32)
    volume[0, 0, 0], volume[1, 0, 0] = 1 << 30, -(1 << 30)
    plane = read_volume(save(path, volume))[0]
    assert plane[0, 0] == 32767
    assert plane[0, 1] == -32768


def test_nan_is_air_and_infinity_is_clipped(path: pathlib.Path) -> None:
    volume = np.full((4, 3, 3), 40.4, np.float32)
    volume[0, 0, 0], volume[1, 0, 0], volume[2, 0, 0] = np.nan, np.inf, -np.inf
    assert read_volume(save(path, volume))[0, 0].tolist() == [-1024, 32767, -32768, 40]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float64])
def test_slope_and_intercept_are_applied_and_not_kept(path: pathlib.Path, dtype: type) -> None:
    image = nib.Nifti1Image(np.full((4, 4, 4), 500, dtype), affine_lps())
    nib.save(image, path)
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[112:120] = np.array([2.0, -1024.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(data))
    assert nib.load(path).dataobj[0, 0, 0] == -24
    assert (read_volume(path) == -24).all()
    scan = open_volume(path)
    write_mask(np.full(scan.geometry.shape, 4, np.uint8, order="F"), scan, path.parent / "case.nii.gz")
    written = nib.load(path.parent / "case.nii.gz")
    assert written.get_data_dtype() == np.uint8
    assert (written.get_fdata() == 4).all()  # the organisers compare this way
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)


def test_a_zero_slope_means_no_scaling(path: pathlib.Path) -> None:
    save(path, volume_lps())
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[112:120] = np.array([0.0, 7.0], "<f4").tobytes()
    path.write_bytes(gzip.compress(data))
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


def test_the_mask_keeps_qform_sform_codes_and_units(path: pathlib.Path) -> None:
    image = nib.Nifti1Image(volume_lps(), affine_lps())
    other = affine_lps()
    other[:3, 3] += 50
    image.set_sform(affine_lps(), code=2)
    image.set_qform(other, code=3)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"], image.header["descrip"] = 300, b"a CT"
    image.header["intent_code"], image.header["intent_p1"] = 1005, 3  # with which ITK cannot read it
    nib.save(image, path)
    scan = open_volume(path)
    assert "sform and qform disagree; the sform was used" in scan.warnings
    np.testing.assert_allclose(scan.geometry.affine, affine_lps())
    write_mask(np.zeros(scan.geometry.shape, np.uint8, order="F"), scan, path.parent / "case.nii.gz")
    written = nib.load(path.parent / "case.nii.gz")
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (2, 3)
    np.testing.assert_array_equal(written.get_sform(), nib.load(path).get_sform())
    np.testing.assert_array_equal(written.get_qform(), nib.load(path).get_qform())
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert (written.header["cal_max"], written.header["intent_code"], written.header["intent_p1"]) == (0, 0, 0)


def test_qform_alone_and_neither_are_enough(path: pathlib.Path) -> None:
    image = nib.Nifti1Image(volume_lps(), affine_lps())
    image.set_sform(None, code=0)
    image.set_qform(affine_lps(), code=1)
    nib.save(image, path)
    np.testing.assert_allclose(open_volume(path).geometry.affine, affine_lps(), atol=1e-5)
    image.set_qform(None, code=0)
    nib.save(image, path)
    assert open_volume(path).geometry.spacing_zyx_mm == pytest.approx(SPACING_LPS[::-1])


@pytest.mark.parametrize(("qform", "sform", "known"), [(0, 0, False), (1, 0, True), (0, 4, True), (2, 1, True)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_header_without_orientation_is_warned_of(
    path: pathlib.Path, kind: type[nib.Nifti1Image], qform: int, sform: int, known: bool
) -> None:
    image = kind(volume_lps(), affine_lps())
    image.set_qform(affine_lps() if qform else None, code=qform)
    image.set_sform(affine_lps() if sform else None, code=sform)
    nib.save(image, path)
    for volume in (open_volume(path), open_image(nib.load(path)), open_image(image)):
        assert volume.geometry.orientation_known == known
        assert any("its orientation is not known" in warning for warning in volume.warnings) != known
        assert volume.geometry.spacing_zyx_mm == pytest.approx(SPACING_LPS[::-1])


def test_images_in_memory_without_an_affine_have_no_orientation() -> None:
    assert not open_image(nib.Nifti1Image(volume_lps(), None)).geometry.orientation_known
    assert open_image(nib.Nifti1Image(volume_lps(), np.eye(4))).geometry.orientation_known
    assert open_image(nib.MGHImage(volume_lps(), affine_lps())).geometry.orientation_known
    analyze = nib.AnalyzeImage(volume_lps(), None)
    assert not open_image(analyze).geometry.orientation_known
    assert open_image(nib.AnalyzeImage(volume_lps(), affine_lps())).geometry.orientation_known
    assert open_image(volume_lps(), affine_lps()).geometry.orientation_known


def test_oblique_and_sheared_affines(path: pathlib.Path) -> None:
    angle = np.deg2rad(25)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan = open_volume(save(path, volume_lps(), turn @ affine_lps()))
    assert scan.geometry.spacing_zyx_mm == pytest.approx(SPACING_LPS[::-1], rel=1e-5)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))
    shear = affine_lps()
    shear[1, 2] = 0.7  # a tilted gantry: slices slide in y as z grows
    image = nib.Nifti1Image(volume_lps(), None)
    image.set_sform(shear, code=1)
    nib.save(image, path)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))
    np.testing.assert_allclose(open_volume(path).geometry.affine, shear, rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 0.001), ("micron", 1000.0), ("unknown", 1.0)])
def test_units_other_than_millimetres(path: pathlib.Path, unit: str, factor: float) -> None:
    affine = affine_lps() * factor
    affine[3, 3] = 1
    image = nib.Nifti1Image(volume_lps(), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    assert open_volume(path).geometry.spacing_zyx_mm == pytest.approx(SPACING_LPS[::-1], rel=1e-5)


def test_one_volume_in_four_dimensions_gives_a_three_dimensional_mask(path: pathlib.Path) -> None:
    save(path, volume_lps()[..., None])
    assert nib.load(path).ndim == 4
    scan = open_volume(path)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))
    write_mask(np.zeros(scan.geometry.shape, np.uint8, order="F"), scan, path.parent / "case.nii.gz")
    written = nib.load(path.parent / "case.nii.gz")
    assert written.shape == SHAPE_LPS
    assert written.header.get_zooms() == pytest.approx(SPACING_LPS)


def test_nifti_2_and_header_extensions(path: pathlib.Path) -> None:
    image = nib.Nifti2Image(volume_lps(), affine_lps())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a long remark" * 20))
    nib.save(image, path)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))
    scan = open_volume(path)
    write_mask(np.ones(scan.geometry.shape, np.uint8, order="F"), scan, path.parent / "case.nii.gz")
    written = nib.load(path.parent / "case.nii.gz")
    assert isinstance(written, nib.Nifti2Image)
    assert (np.asarray(written.dataobj) == 1).all()


def test_gzip_is_recognised_by_content_not_by_name(tmp_path: pathlib.Path) -> None:
    plain, zipped = save(tmp_path / "a.nii", volume_lps()), save(tmp_path / "b.nii.gz", volume_lps())
    plain.rename(tmp_path / "plain.nii.gz")
    zipped.rename(tmp_path / "zipped.nii")
    for path in (tmp_path / "plain.nii.gz", tmp_path / "zipped.nii"):
        np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


def test_gzip_of_several_members_and_zero_padding(path: pathlib.Path) -> None:
    save(path, volume_lps())
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]) + bytes(64))
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


@pytest.mark.parametrize(("axes", "order"), [("LPS", range(7)), ("RAI", range(6, -1, -1)), ("SLP", range(7))])
def test_the_file_is_read_once_and_forward_only(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, axes: str, order: range
) -> None:
    monkeypatch.setattr(nifti, "CHUNK_BYTES", 100)  # several chunks for this small file
    nib.save(stored_as(axes, volume_lps(), affine_lps()), path)
    scan = open_volume(path)
    read = 0
    original = nifti._read_exactly

    def counting(stream: BinaryIO, size: int) -> bytearray:
        nonlocal read
        read += size
        return original(stream, size)

    monkeypatch.setattr(nifti, "_read_exactly", counting)
    monkeypatch.setattr("isal.igzip.IGzipFile.seek", lambda *_: pytest.fail("seek"))
    for (z, plane), expected in zip(scan.slices(), order, strict=True):
        assert z == expected
        np.testing.assert_array_equal(plane, volume_lps()[:, :, z].T)
    assert read == 352 + volume_lps().nbytes


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "truncated gz",
            "truncated by its last byte",
            "checksum",
            "empty",
            "text",
            "another format",
            "compressed twice",
            "2-D",
            "4-D with 3 volumes",
        ),
        *("RGB", "complex", "zero spacing", "NaN spacing", "singular affine", "NaN affine", "huge header"),
        *("header pair", "no dimensions", "negative shape", "unknown type"),
    ],
)
def test_a_bad_file_gives_one_clear_line(path: pathlib.Path, kind: str) -> None:
    line = damaged(kind, path)
    with pytest.raises(VolumeError, match=re.escape(f"{path}: {line}")) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unreadable_one(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = re.escape(f"{path}: cannot be opened (No such file or directory); check that it exists and may be read")
    with pytest.raises(VolumeError, match=line):
        open_volume(path)
    save(path, volume_lps())
    if os.geteuid() == 0:  # root may read everything: the kernel's answer is played

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(pathlib.Path, "open", refuse)
    else:
        path.chmod(0)
    with pytest.raises(VolumeError, match=r"cannot be opened \(Permission denied\)"):
        open_volume(path)


def test_a_huge_promise_allocates_nothing(path: pathlib.Path) -> None:
    """The file could hold 1000 times its size if it compressed perfectly; only what is there is read."""
    volume = np.random.default_rng(0).integers(-1000, 1000, (128, 128, 128)).astype(np.int16)
    save(path, volume, np.diag([1.0, 1, 0.1, 1]))
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[46:48] = np.array([30000], "<i2").tobytes()  # 983 MB instead of 4 MB
    path.write_bytes(gzip.compress(data, 1))
    before = peak_rss_kib()
    with pytest.raises(VolumeError, match="truncated"):
        read_volume_in_axis_order(path)
    assert peak_rss_kib() - before < 100_000


def peak_rss_kib() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def read_volume_in_axis_order(path: pathlib.Path) -> None:
    for _ in open_volume(path).slices():
        pass


@pytest.mark.parametrize("name", ["case.nii.gz", "case.nii"])
def test_a_mask_is_written_whole_or_not_at_all(path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = open_volume(save(path, volume_lps()))
    target = path.parent / name
    mask = np.ones(scan.geometry.shape, np.uint8, order="F")
    write_mask(mask, scan, target)
    before = target.read_bytes()
    monkeypatch.setattr(nifti_mask, "CHUNK_BYTES", 64)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", disk_full)
    line = re.escape(f"{target}: the mask cannot be written (No space left on device); check the folder and its disk")
    with pytest.raises(ResultError, match=line):
        write_mask(mask * 2, scan, target)
    assert target.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, name])


def test_a_mask_can_be_read_by_everyone_the_umask_allows(path: pathlib.Path) -> None:
    scan = open_volume(save(path, volume_lps()))
    old = os.umask(0o022)
    try:
        write_mask(np.zeros(scan.geometry.shape, np.uint8, order="F"), scan, path.parent / "case.nii.gz")
    finally:
        os.umask(old)
    assert (path.parent / "case.nii.gz").stat().st_mode & 0o777 == 0o644


def test_read_ahead_keeps_order_raises_late_and_ends_its_thread() -> None:
    def numbers() -> Generator[int, None, None]:
        yield from (1, 2, 3)
        raise ValueError("broken")

    items = ReadAhead(numbers(), depth=1)
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(items)

    endless = ReadAhead((i for i in itertools.count()), depth=2)
    assert next(endless) == 0
    endless.close()

    ReadAhead((i for i in itertools.count()), depth=2).close()
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("change", ["unit", "spacing", "infinite"])
def test_a_size_that_no_patient_has_is_one_line(path: pathlib.Path, change: str) -> None:
    affine = np.diag([1e6, 1e6, 2.0, 1.0]) if change == "spacing" else np.diag([0.8, 0.8, 2.0, 1.0])
    image = nib.Nifti1Image(np.zeros((64, 64, 4), np.int16), affine)
    image.header.set_xyzt_units("meter" if change == "unit" else "mm")
    nib.save(image, path)
    if change == "infinite":
        edit(path, put(280, 1e38, 0, 0, 0))  # srow_x
    with pytest.raises(VolumeError, match=r"case_0000\.nii\.gz: the scan measures .* larger than any patient; correct"):
        open_volume(path)


def test_a_size_too_small_for_an_abdomen_is_a_warning(path: pathlib.Path) -> None:
    image = nib.Nifti1Image(np.zeros((64, 64, 4), np.int16), np.diag([0.8, 0.8, 2.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, path)
    assert any("too little for an abdomen" in warning for warning in open_volume(path).warnings)


@pytest.mark.parametrize(
    "change",
    [
        *(put(76, 0.0), put(76, np.nan), put(76, 3.0), put(256, 5.0, 5.0, 5.0), put(256, np.nan)),
        *(put(123, 7, form="u1"), put(123, 255, form="u1"), put(252, -3, form="<i2"), put(54, 0, form="<i2")),
    ],
)
def test_a_field_that_is_not_needed_stops_nothing(path: pathlib.Path, change: Callable[[bytearray], None]) -> None:
    image = nib.Nifti1Image(volume_lps(), affine_lps())
    image.set_qform(affine_lps(), code=1)
    nib.save(image, path)
    twin = open_volume(path).geometry
    edit(path, change)
    np.testing.assert_array_equal(open_volume(path).geometry.affine, twin.affine)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


@pytest.mark.parametrize("row", [[1e-200, 0, 0, 0], [0, 0, 2.0, 0], [np.inf, 0, 0, 0], [1e200, 1e200, 0, 0]])
def test_an_affine_whose_axes_cannot_be_told_apart_is_one_line(path: pathlib.Path, row: list[float]) -> None:
    nib.save(nib.Nifti2Image(volume_lps(), affine_lps()), path)
    edit(path, put(400, *row, form="<f8"))
    with pytest.raises(VolumeError, match=r"case_0000\.nii\.gz: singular affine"):
        open_volume(path)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_unusable_sform_gives_way_to_the_qform(path: pathlib.Path, value: float) -> None:
    image = nib.Nifti1Image(volume_lps(), affine_lps())
    image.set_qform(affine_lps(), code=1)
    image.to_filename(path)
    edit(path, put(296, *[value] * 4))  # srow_y
    scan = open_volume(path)
    assert "unusable sform; the qform was used" in scan.warnings
    np.testing.assert_allclose(scan.geometry.affine, affine_lps(), atol=1e-5)


def test_sform_and_pixdim_that_disagree_are_a_warning(path: pathlib.Path) -> None:
    """ITK takes the spacing from pixdim, nibabel from the sform."""
    save(path, volume_lps())
    assert not [warning for warning in open_volume(path).warnings if "pixdim" in warning]
    edit(path, put(80, 1.0, 1.0, 1.0))
    scan = open_volume(path)
    assert any(
        "sform and pixdim disagree on the voxel spacing (0.5, 0.75, 2 and 1, 1, 1); the sform was used" in warning
        for warning in scan.warnings
    )
    assert scan.geometry.spacing_zyx_mm == pytest.approx((2.0, 0.75, 0.5))


@pytest.mark.parametrize(
    ("diagonal", "origin", "is_doubted"),
    [
        *(((1, 1, 1), 0, True), ((-1, -1, 1), 0, True)),  # of nibabel's users, and of ITK's
        *(((1, 1, 1), -7, False), ((-1, -1, 1.5), 0, False)),
    ],
)
def test_the_identity_is_doubted(
    path: pathlib.Path, diagonal: tuple[float, float, float], origin: float, is_doubted: bool
) -> None:
    affine = np.diag([*diagonal, 1.0])
    affine[2, 3] = origin
    save(path, volume_lps(), affine)
    series = path.parent / "as DICOM"
    write_series(series, volume_lps(), (*np.abs(diagonal),))
    for slice_path in series.iterdir():
        one = pydicom.dcmread(slice_path)
        one.ImagePositionPatient = [0, 0, one.ImagePositionPatient[2] + origin]
        one.save_as(slice_path)
    for volume in (open_volume(path), open_image(volume_lps(), affine), open_volume(series)):
        assert any("its affine is the identity" in warning for warning in volume.warnings) == is_doubted


@pytest.mark.parametrize("offset", [0.0, 100.0, 351.0, -5.0, np.nan, np.inf, 1e30])
def test_voxels_cannot_begin_inside_the_header(path: pathlib.Path, offset: float) -> None:
    save(path, volume_lps())
    edit(path, put(108, offset))
    with pytest.raises(VolumeError, match=r"voxels begin at byte .*, expected 352 or more; export it again"):
        open_volume(path)


@pytest.mark.parametrize("tail", [b"x", b"signature of somebody" * 100, b"\x1f\x8b", b"\x1f\x8b\x08 no", bytes(5000)])
def test_bytes_after_the_gzip_stream_are_ignored(path: pathlib.Path, tail: bytes) -> None:
    save(path, volume_lps())
    path.write_bytes(path.read_bytes() + tail)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 40])
def test_a_second_member_that_is_cut_is_no_trailing_garbage(path: pathlib.Path, cut: int) -> None:
    save(path, volume_lps())
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:])[:-cut])
    with pytest.raises(VolumeError, match="truncated"):
        read_volume(path)
