"""What every format promises (see `app.volumes.Volume`), run for every row of `FORMATS` and for tiny third formats."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import JPEGLSLossless, RLELossless

from app.cases import find_cases
from app.errors import VolumeError
from app.volumes import FORMATS, Geometry, find_scans, open_volume
from phantom.dicom import write_enhanced, write_series
from tests.nifti_files import (
    ORIENTATIONS,
    SHAPE_LPS,
    SPACING_LPS,
    affine_lps,
    read_volume,
    stored_as,
    volume_lps,
    write_mask,
)
from tests.tiny_formats import TINY_FORMATS

Store = Callable[[pathlib.Path, str], pathlib.Path]  # writes `volume_lps` with these stored axes into a folder


def store_nifti(folder: pathlib.Path, axes: str) -> pathlib.Path:
    nib.save(stored_as(axes, volume_lps(), affine_lps()), folder / "case_0000.nii.gz")
    return folder / "case_0000.nii.gz"


def store_plain_nifti_2(folder: pathlib.Path, axes: str) -> pathlib.Path:
    image = stored_as(axes, volume_lps(), affine_lps())
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine), folder / "case_0000.nii")
    return folder / "case_0000.nii"


def arranged(axes: str) -> tuple[NDArray[np.int16], list[float], tuple[float, float, float]]:
    """`volume_lps` as a series of slices: voxels, orientation of rows and columns, spacing. The normal is theirs."""
    image = stored_as(axes, volume_lps(), affine_lps())
    voxels, directions = np.asarray(image.dataobj), image.affine[:3, :3] * [[-1], [-1], [1]]  # RAS -> LPS
    x, y, z = (float(np.linalg.norm(directions[:, i])) for i in range(3))
    rows, columns = directions[:, 0] / x, directions[:, 1] / y
    if np.dot(np.cross(rows, columns), directions[:, 2]) < 0:
        voxels = voxels[:, :, ::-1]
    return voxels, [*rows, *columns], (x, y, z)


def store_series(folder: pathlib.Path, axes: str) -> pathlib.Path:
    voxels, orientation, spacing = arranged(axes)
    write_series(folder / "series", voxels, spacing, orientation)
    return folder / "series"


def store_jpeg_ls(folder: pathlib.Path, axes: str) -> pathlib.Path:
    voxels, orientation, spacing = arranged(axes)
    write_series(folder / "series", voxels, spacing, orientation, syntax=JPEGLSLossless)
    return folder / "series"


def store_run_lengths(folder: pathlib.Path, axes: str) -> pathlib.Path:
    voxels, orientation, spacing = arranged(axes)
    write_series(folder / "series", voxels, spacing, orientation, syntax=RLELossless, name="IM{}")
    return folder / "series"


def store_enhanced(folder: pathlib.Path, axes: str) -> pathlib.Path:
    voxels, orientation, spacing = arranged(axes)
    write_enhanced(folder / "frames.dcm", voxels, spacing, orientation)
    return folder / "frames.dcm"


def store_tiny(name: str) -> Store:
    def store(folder: pathlib.Path, axes: str) -> pathlib.Path:
        image = stored_as(axes, volume_lps(), affine_lps())
        return TINY_FORMATS[name].store(folder / "case", np.asarray(image.dataobj), image.affine)

    return store


STORES: dict[str, list[Store]] = {
    "nifti": [store_nifti, store_plain_nifti_2],
    "dicom": [store_series, store_jpeg_ls, store_run_lengths, store_enhanced],
    **{name: [store_tiny(name)] for name in TINY_FORMATS},
}
every_format = pytest.mark.parametrize(
    "store", [pytest.param(store, id=f"{name} {i}") for name in STORES for i, store in enumerate(STORES[name], 1)]
)


@pytest.fixture(autouse=True)
def tiny_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny formats are rows of the table too."""
    for name, tiny in TINY_FORMATS.items():
        monkeypatch.setitem(FORMATS, name, tiny)


def test_every_row_of_the_table_is_here() -> None:
    assert set(STORES) == set(FORMATS)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@every_format
@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_every_orientation_is_read_alike_and_its_mask_lies_on_it(
    tmp_path: pathlib.Path, store: Store, axes: str
) -> None:
    volume = open_volume(store(tmp_path, axes))
    voxels = volume_lps().transpose(2, 1, 0)
    np.testing.assert_array_equal(read_volume(volume.path), voxels)
    geometry = volume.geometry
    assert geometry.shape_zyx == SHAPE_LPS[::-1]
    assert geometry.spacing_zyx_mm == pytest.approx(SPACING_LPS[::-1])
    assert geometry.slowest_is_z == (axes[2] in "SI")

    mask = np.zeros(geometry.shape, np.uint8, order="F")
    geometry.orient(mask)[...] = (voxels % 5).astype(np.uint8)
    write_mask(mask, volume, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(written.affine, geometry.affine, atol=1e-5)
    np.testing.assert_array_equal(in_patient_space(written), voxels.T % 5)


def in_patient_space(image: nib.Nifti1Image) -> NDArray[np.uint8]:
    """Voxels (x, y, z) in LPS order, by nibabel alone."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    )
    turned: NDArray[np.uint8] = nib.orientations.apply_orientation(np.asarray(image.dataobj), turn)
    return turned


@every_format
@pytest.mark.parametrize("axes", ["LPS", "RAI", "SLP"])
def test_slices_come_once_each_in_one_direction(tmp_path: pathlib.Path, store: Store, axes: str) -> None:
    volume = open_volume(store(tmp_path, axes))
    order = []
    for z, plane in volume.slices():
        assert plane.dtype == np.int16
        assert plane.shape == volume.geometry.shape_zyx[1:]
        assert plane.flags.c_contiguous
        order.append(z)
    up = list(range(SHAPE_LPS[2]))
    assert order in (up, up[::-1])


@every_format
def test_slices_can_be_closed_early_and_asked_for_again(tmp_path: pathlib.Path, store: Store) -> None:
    volume = open_volume(store(tmp_path, "LPS"))
    slices = volume.slices()
    next(slices)
    slices.close()
    assert list(slices) == []
    assert len(list(volume.slices())) == SHAPE_LPS[2]


@every_format
def test_a_file_that_ends_early_is_one_line_with_its_name(tmp_path: pathlib.Path, store: Store) -> None:
    path = store(tmp_path, "LPS")
    damaged = path if path.is_file() else sorted(path.iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(VolumeError, match=f"{damaged}: ") as caught:
        list(open_volume(path).slices())
    assert "\n" not in str(caught.value)


@every_format
def test_a_scan_is_found_once_and_opens_as_it_does_alone(tmp_path: pathlib.Path, store: Store) -> None:
    """In a folder, as INPUT itself, and as a case; other files beside it are no scans."""
    (tmp_path / "in").mkdir()
    path = store(tmp_path / "in", "LPS")
    (tmp_path / "in" / "notes.txt").write_text("not a scan")
    geometry = open_volume(path).geometry
    for source in (tmp_path / "in", path):
        (scan,) = find_scans(source)
        assert scan.problem is scan.not_ct is None
        found = scan.open()
        np.testing.assert_array_equal(found.geometry.affine, geometry.affine)
        assert found.geometry.shape == geometry.shape
        (case,) = find_cases(source, tmp_path / "out")
        assert case.outputs["nifti"].name.endswith((".nii.gz", ".nii"))
        assert case.outputs["nifti"].parent == tmp_path / "out"


def test_scans_of_all_formats_lie_side_by_side(tmp_path: pathlib.Path) -> None:
    """Each is found once, by its own format."""
    stores = [store for several in STORES.values() for store in several]
    for i, store in enumerate(stores):
        (tmp_path / str(i)).mkdir()
        store(tmp_path / str(i), "LPS")
    found = [scan for i in range(len(stores)) for scan in find_scans(tmp_path / str(i))]
    assert len(found) == len(stores)
    assert all(scan.problem is scan.not_ct is None for scan in found)


def test_what_no_format_claims_is_one_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("not a scan")
    with pytest.raises(VolumeError, match=r"notes\.txt: not a scan; expected \.nii\.gz or \.nii file or DICOM or "):
        open_volume(tmp_path / "notes.txt")
    with pytest.raises(VolumeError, match=r"missing: not a scan"):
        open_volume(tmp_path / "missing")
    with pytest.raises(VolumeError, match=f"{tmp_path}: expected one CT, found 0"):
        open_volume(tmp_path)


@given(st.sampled_from(ORIENTATIONS), st.tuples(*[st.integers(1, 4)] * 3))
def test_restore_is_the_inverse_of_orient(axes: str, shape: tuple[int, int, int]) -> None:
    stored = np.arange(np.prod(shape)).reshape(shape)
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)),
        shape,
    )
    geometry = Geometry.of(shape, affine)
    np.testing.assert_array_equal(geometry.restore(geometry.orient(stored)), stored)
    assert geometry.orient(stored).shape == geometry.shape_zyx
