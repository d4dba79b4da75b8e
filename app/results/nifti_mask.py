"""The mask as NIfTI, on its scan's own grid."""

from __future__ import annotations

import contextlib
import pathlib

from ..errors import ResultError
from ..ownership import BLANK, PROGRAM, fits_mark, has_mark, is_unchanged, mark_of
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.gzip_file import DECODE_ERROR, compressing, open_bytes, plain_head, plain_length
from ..volumes.nifti import EXTENSIONS, mask_header
from ..volumes.nifti_header import Header, description, is_cut_in_header, promised_length
from ..volumes.walk import first_bytes
from ..whole_file import whole_file
from .result import Result, beside

CHUNK_BYTES = 8 << 20  # compressed at a time


class NiftiMask(Result):
    """X.nii.gz: labels as uint8, with the scan's affine, qform, sform, their codes, and units.

    The header's description names this program and carries the mark of the content, see ownership.py, so that a later
    run knows which masks it may replace.
    """

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Compressed if the scan is; see `Result.path`."""
        return beside(base, EXTENSIONS[0] if mask_extension is None else mask_extension)

    def looks_whole(self, path: pathlib.Path) -> bool:
        """Whether a mask is as long as its mark or its header says; see `Result.looks_whole`."""
        length, head = plain_length(path), first_bytes(path)
        plain = plain_head(head)
        if plain is None or (any(head) and not has_mark(plain) and not is_cut_in_header(plain)):
            return True  # of others
        return any(head) and has_mark(plain) and (fits_mark(plain, length) or promised_length(plain) == length)

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether a mask may be replaced; see `Result.wrote`."""
        head = plain_head(first_bytes(path)) or b""
        if not has_mark(head) or not self.is_whole(path):
            return not self.is_whole(path) or description(head).startswith(PROGRAM.encode())
        try:
            with open_bytes(path) as stream:
                return is_unchanged(stream)
        except (OSError, EOFError, DECODE_ERROR):
            return False

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the mask, compressed if its name ends with .gz; see `Result.write`."""
        header, extension = self.header(mask_header(segmentation.volume))
        voxels = segmentation.mask.reshape(-1, order="F").data
        about = f"{PROGRAM} {__version__} ".encode()
        header["descrip"] = about + BLANK
        header["descrip"] = about + mark_of((header.binaryblock, extension, voxels))
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
