"""The mask as NIfTI, on its scan's own grid."""

from __future__ import annotations

import contextlib
import pathlib

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import ResultError
from ..volumes import Volume
from ..volumes.gzip_file import compressing
from ..volumes.nifti import description, mask_header
from ..whole_file import whole_file

PROGRAM = "hrnet-ocr-abdomen"
CHUNK_BYTES = 8 << 20  # compressed at a time


class NiftiMask:
    """X.nii.gz: labels as uint8, with the scan's affine, qform, sform, their codes, and units.

    The header's description names this program, so that a later run knows which masks it may replace.
    """

    @staticmethod
    def wrote(path: pathlib.Path) -> bool:
        """Whether a file is a mask that this class wrote."""
        return description(path).startswith(PROGRAM)

    def path(self, mask_path: pathlib.Path) -> pathlib.Path:
        """The mask's own path."""
        return mask_path

    def write(self, mask: NDArray[np.uint8], volume: Volume, path: pathlib.Path) -> None:
        """Write the mask, compressed if its name ends with .gz; see `Result.write`."""
        header = mask_header(volume)
        header["descrip"] = f"{PROGRAM} {__version__}".encode()
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
