"""What every format promises (see `app.volumes.Volume`), run for each of them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import VolumeError
from app.volumes import Geometry, open_volume
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

Store = Callable[[pathlib.Path, str], pathlib.Path]  # writes `volume_lps` with these stored axes into a folder


def store_nifti(folder: pathlib.Path, axes: str) -> pathlib.Path:
    nib.save(stored_as(axes, volume_lps(), affine_lps()), folder / "case_0000.nii.gz")
    return folder / "case_0000.nii.gz"


def store_plain_nifti_2(folder: pathlib.Path, axes: str) -> pathlib.Path:
    image = stored_as(axes, volume_lps(), affine_lps())
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine), folder / "case_0000.nii")
    return folder / "case_0000.nii"


every_format = pytest.mark.parametrize("store", [store_nifti, store_plain_nifti_2])


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
    return nib.orientations.apply_orientation(np.asarray(image.dataobj), turn)


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
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(VolumeError, match=f"{path}: .*truncated") as caught:
        list(open_volume(path).slices())
    assert "\n" not in str(caught.value)


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
