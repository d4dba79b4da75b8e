"""Label files, read to their last byte and checked voxel by voxel."""

from __future__ import annotations

import pathlib
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from app.errors import VolumeError
from app.volumes import Geometry
from app.volumes.nifti import open_nifti


class LabelError(Exception):
    """A file is not a usable label volume; the message names it and says what to do."""


def read_labels(path: pathlib.Path, allowed: Collection[int]) -> tuple[NDArray[np.uint8], Geometry]:
    """Read a label volume.

    Args:
        path: a NIfTI file.
        allowed: the values it may hold.

    Returns:
        Labels (Z, Y, X) uint8 in LPS order, and the file's geometry.

    Raises:
        LabelError: the file cannot be read, is damaged, or holds another value.
    """
    accepted = np.array(sorted(allowed))
    try:
        volume = open_nifti(path)
        labels = np.empty(volume.geometry.shape_zyx, np.uint8)
        for z, plane in volume.exact_slices():
            known = np.isin(plane, accepted)
            if not known.all():
                names, value = ", ".join(map(str, accepted)), plane[~known].flat[0]
                remedy = "renumber them" if value == np.rint(value) else "save them as integers, unscaled"
                raise LabelError(f"{path}: holds the value {value}; labels are {names}, {remedy}")
            labels[z] = plane
    except VolumeError as error:
        raise LabelError(str(error)) from error
    return labels, volume.geometry


def check_same_grid(path: pathlib.Path, geometry: Geometry, reference: Geometry) -> None:
    """See that two volumes lie on one grid.

    Args:
        path: of the first, for the message.
        geometry: of the first.
        reference: of the other one.

    Raises:
        LabelError: shape or affine differ.
    """
    if geometry.shape != reference.shape:
        raise LabelError(
            f"{path}: shape {geometry.shape}, the reference has {reference.shape}; resample it onto that grid"
        )
    if not np.allclose(geometry.affine, reference.affine, atol=1e-2):
        raise LabelError(f"{path}: its affine is not the reference's; resample it onto that grid")
