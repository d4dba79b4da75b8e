"""The mask as NIfTI, on its scan's own grid."""

from __future__ import annotations

import contextlib
import pathlib

from ..errors import ResultError
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.gzip_file import compressing
from ..volumes.nifti import EXTENSIONS, mask_header
from ..volumes.nifti_header import Header, description
from ..whole_file import whole_file
from .result import PROGRAM, Result, beside

CHUNK_BYTES = 8 << 20  # compressed at a time


class NiftiMask(Result):
    """X.nii.gz: labels as uint8, with the scan's affine, qform, sform, their codes, and units.

    The header's description names this program, so that a later run knows which masks it may replace.
    """

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Compressed if the scan is; see `Result.path`."""
        return beside(base, mask_extension or EXTENSIONS[0])

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether a file is a mask of this program; see `Result.wrote`."""
        return description(path).startswith(PROGRAM)

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the mask, compressed if its name ends with .gz; see `Result.write`."""
        header, extension = self.header(mask_header(segmentation.volume))
        header["descrip"] = f"{PROGRAM} {__version__}".encode()
        voxels = segmentation.mask.reshape(-1, order="F").data
        try:
            with (
                whole_file(path) as raw,
                compressing(raw) if path.suffix == ".gz" else contextlib.nullcontext(raw) as stream,
            ):
                stream.write(header.binaryblock + extension)
                for start in range(0, len(voxels), CHUNK_BYTES):
                    stream.write(voxels[start : start + CHUNK_BYTES])
        except OSError as error:
            raise ResultError(
                f"{path}: the mask cannot be written ({error.strerror}); check the folder and its disk"
            ) from error

    def header(self, header: Header) -> tuple[Header, bytes]:
        """The mask's header, and the bytes between it and the voxels: four zeros say that no extension follows."""
        return header, bytes(4)
