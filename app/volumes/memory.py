"""Scans in memory: nibabel images and arrays."""

from __future__ import annotations

import pathlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..errors import VolumeError
from ..hounsfield import AIR
from .nifti_header import Header, checked_geometry, reading
from .read_ahead import ReadAhead
from .volume import Geometry, Slices, ahead_of_network, implausible, is_rigid, to_int16


@dataclass(frozen=True)
class ImageVolume:
    """A nibabel image; see `Volume`.

    Attributes:
        path: of the file that the image was loaded from, or a word that stands for it in messages.
        header: of NIfTI, with the image's affine.
        geometry: of it.
        warnings: what is odd about it but does not stop us.
        voxels: Hounsfield units in stored axis order; may be nibabel's proxy of a file.
    """

    path: pathlib.Path
    header: Header
    geometry: Geometry
    warnings: tuple[str, ...]
    voxels: Any

    def slices(self) -> Slices:
        """Start decoding; see `Volume.slices`."""
        return ReadAhead(self._decode(), depth=ahead_of_network(self.geometry.shape_zyx))

    def _decode(self) -> Generator[tuple[int, NDArray[np.int16]], None, None]:
        with reading(self.path):  # which may have changed since nibabel opened it
            voxels = np.asanyarray(self.voxels)
        oriented = self.geometry.orient(voxels.reshape(self.geometry.shape))
        for z, plane in enumerate(oriented):
            yield z, np.ascontiguousarray(to_int16(plane))


def open_image(image: Any, affine: Any = None) -> ImageVolume:  # noqa: ANN401 (nibabel is not typed)
    """Check that an image, or an array of Hounsfield units with its affine, is a CT that can be segmented.

    Args:
        image: a nibabel image; or an array (X, Y, Z) of any number type.
        affine: (4, 4), voxel -> patient RAS, mm; for an array.

    Raises:
        VolumeError: it is not.
    """
    if isinstance(image, SpatialImage):
        if affine is not None:
            raise VolumeError("image: an affine was given besides a nibabel image, which has its own; leave it out")
        named = image.get_filename()
        path = pathlib.Path(named).absolute() if named else pathlib.Path("image")
        voxels, affine = image.dataobj, image.affine
        header = nib.Nifti1Header.from_header(image.header, check=False)
    else:
        if not hasattr(image, "__array__"):  # NumPy would take SimpleITK's images voxel by voxel, for minutes
            raise VolumeError(
                f"expected a path, a nibabel image, or an array with its affine, got a {type(image).__name__}"
            )
        path, header = pathlib.Path("array"), nib.Nifti1Header()
        voxels = _as_array(path, image)
        affine = _checked_affine(path, affine)
        if isinstance(image, np.ma.MaskedArray):
            raise VolumeError(f"{path}: a masked array; say what lies under the mask, such as image.filled({AIR:.0f})")
        header.set_xyzt_units("mm")
    kind = getattr(voxels, "dtype", np.dtype(object)).kind
    if kind not in "iuf":
        raise VolumeError(f"{path}: expected Hounsfield units as integers or floats, got an array of kind '{kind}'")
    shape = np.shape(voxels)
    if max(shape, default=0) > np.iinfo(np.int16).max:
        raise VolumeError(f"{path}: expected a 3-D CT, got shape {shape}; cut it to the abdomen")
    header.set_data_shape(shape)
    is_ours = not (_is_in_header(image) or _is_unoriented(image))
    if is_ours:
        header.set_sform(affine, code="scanner")
        header["qform_code"] = 0
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    geometry, warnings = checked_geometry(path, header)
    if is_ours and is_rigid(affine):  # ITK opens the mask by it where the axes are not quite at right angles
        header.set_qform(affine, code="scanner")
    return ImageVolume(path, header, geometry, (*warnings, *implausible(path, geometry)), voxels)


def _as_array(path: pathlib.Path, given: Any) -> NDArray[Any]:  # noqa: ANN401 (whatever was given)
    """What is given in NumPy's own form.

    Raises:
        VolumeError: it has none, as a tensor of torch has that lies on a GPU, is of bfloat16 or wants a gradient.
    """
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise VolumeError(
            f"{path}: a {type(given).__name__} that NumPy cannot take ({reason}); give a NumPy array, "
            "such as tensor.detach().cpu().float().numpy()"
        ) from error


def _checked_affine(path: pathlib.Path, affine: Any) -> NDArray[np.float64]:  # noqa: ANN401 (whatever was given)
    """An array's affine, (4, 4).

    Raises:
        VolumeError: it is none.
    """
    expected = f"{path}: expected its affine, (4, 4), voxel -> patient RAS in mm"
    values = _as_array(path, affine)
    if values.shape != (4, 4):
        raise VolumeError(f"{expected}; got {values.shape or None}")
    if values.dtype.kind not in "iuf":
        raise VolumeError(f"{expected}; got an array of kind '{values.dtype.kind}'")
    if not np.array_equal(values[3], (0, 0, 0, 1)):
        raise VolumeError(f"{expected}; got one whose last row is {values[3].tolist()} instead of 0, 0, 0, 1")
    return values.astype(np.float64)


def _is_in_header(image: Any) -> bool:  # noqa: ANN401 (nibabel is not typed)
    """Whether an image's header has its affine.

    Only NIfTI's have a place for it, and nibabel puts one that was changed in place there when it saves the image.
    """
    if not isinstance(image, nib.Nifti1Pair):
        return False
    return image.affine is None or np.allclose(image.affine, image.header.get_best_affine())


def _is_unoriented(image: Any) -> bool:  # noqa: ANN401 (nibabel is not typed)
    """Whether an image has no affine, or one guessed from its spacing: Analyze files say no more."""
    if isinstance(image, SpatialImage) and image.affine is None:
        return True
    return isinstance(image, nib.AnalyzeImage) and np.allclose(image.affine, image.header.get_base_affine())
