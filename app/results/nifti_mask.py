"""The mask as NIfTI, on its scan's own grid."""

from __future__ import annotations

import contextlib
import pathlib

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultError
from ..volumes import Volume
from ..volumes.gzip_file import compressing
from ..volumes.nifti import mask_header
from ..whole_file import whole_file

CHUNK_BYTES = 8 << 20  # compressed at a time


class NiftiMask:
    """X.nii.gz: labels as uint8, with the scan's affine, qform, sform, their codes, and units."""

    def path(self, mask_path: pathlib.Path) -> pathlib.Path:
        """The mask's own path."""
        return mask_path

    def write(self, mask: NDArray[np.uint8], volume: Volume, path: pathlib.Path) -> None:
        """Write the mask, compressed if its name ends with .gz; see `Result.write`."""
        header = mask_header(volume)
        voxels = mask.reshape(-1, order="F").data
        try:
            with (
                whole_file(path) as raw,
                compressing(raw) if path.suffix == ".gz" else contextlib.nullcontext(raw) as stream,
            ):
                stream.write(header.binaryblock + bytes(4))  # four zeros: no header extension follows
                for start in range(0, len(voxels), CHUNK_BYTES):
                    stream.write(voxels[start : start + CHUNK_BYTES])
        except OSError as error:
            raise ResultError(
                f"{path}: the mask cannot be written ({error.strerror}); check the folder and its disk"
            ) from error
