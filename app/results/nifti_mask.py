"""The mask as NIfTI, on its scan's own grid."""

from __future__ import annotations

import contextlib
import pathlib

from ..errors import AppError, ResultError
from ..organs import ORGANS, voxels_by_plane
from ..ownership import BLANK, PROGRAM, fits_mark, has_mark, is_unchanged, mark_of
from ..run_log import RUN_LOG, read_records
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.gzip_file import DECODE_ERROR, compressing, open_bytes, plain_head, plain_length
from ..volumes.nifti import EXTENSIONS, mask_header, open_nifti
from ..volumes.nifti_header import Header, description, is_cut_in_header, promised_length
from ..volumes.walk import first_bytes
from ..whole_file import whole_file
from .result import Result, beside

CHUNK_BYTES = 8 << 20  # compressed at a time
ROUNDED_ML = 0.01  # volumes in the log have two digits


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
        """Whether a mask may be replaced; see `Result.wrote`. One without a mark must be as the run log says."""
        head = plain_head(first_bytes(path)) or b""
        if not self.is_whole(path):
            return True
        if not has_mark(head):
            return description(head).startswith(PROGRAM.encode()) and _is_as_logged(path)
        try:
            with open_bytes(path) as stream:
                return is_unchanged(stream)
        except (OSError, EOFError, DECODE_ERROR):
            return False

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the mask, compressed if its name ends with .gz; see `Result.write`."""
        if not path.name.lower().endswith(EXTENSIONS):
            raise ResultError(f"{path}: the name of a mask must end with .nii.gz or .nii; choose such a name")
        header, extension = self.header(mask_header(segmentation.volume))
        voxels = segmentation.mask.reshape(-1, order="F").data
        about = f"{PROGRAM} {__version__} ".encode()
        header["descrip"] = about + BLANK
        header["descrip"] = about + mark_of((header.binaryblock, extension, voxels))
        try:
            with (
                whole_file(path) as raw,
                compressing(raw) if path.suffix.lower() == ".gz" else contextlib.nullcontext(raw) as stream,
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


def _is_as_logged(path: pathlib.Path) -> bool:
    """Whether a mask has the volumes that the run log says; False where that says nothing of it.

    Masks of 0.6.1 and earlier have no mark. Whoever corrects one changes the volume of some organ.
    """
    folder = next((folder for folder in path.parents if (folder / RUN_LOG).is_file()), path.parent)
    name = path.relative_to(folder).as_posix()
    cases = {name.removesuffix(extension) for extension in EXTENSIONS}
    logged = [record.get("volumes_ml") for record in read_records(folder) if record.get("case") in cases]
    said = next((volumes for volumes in reversed(logged) if isinstance(volumes, dict)), None)
    if said is None:
        return False
    try:
        volume = open_nifti(path)
        voxels = voxels_by_plane(plane for _, plane in volume.exact_slices()).sum(axis=0)
    except (AppError, TypeError, ValueError):  # its values may be no labels
        return False
    found = {organ.key: float(voxels[organ]) * volume.geometry.voxel_ml for organ in ORGANS}
    return all(abs(found.get(key, -1) - ml) <= ROUNDED_ML for key, ml in said.items())
