"""What a scan is, format by format.

volume.py        Geometry, the Volume protocol, Scan and the Format protocol: what every format gives
walk.py          every file of INPUT once, with its first bytes
nifti.py         NIfTI-1 and NIfTI-2, plain or gzip; nifti_header.py checks their headers
dicom.py         DICOM; dicom_series.py makes series of files, by dicom_header.py (a header -> its slices),
                 dicom_slice.py (a slice and its pixels), dicom_fields.py (what is read of headers), dicom_groups.py
                 (which slices may share a volume), dicom_arrange.py (groups as volumes), dicom_stack.py (what a volume
                 is), dicom_phases.py (several volumes in a group) and dicom_names.py (whose an unreadable file is)
memory.py        a nibabel image, or an array with its affine
archive.py       a .zip or .tar.gz of any of these
gzip_file.py     gzip streams, both ways
read_ahead.py    a thread that decodes slices before they are asked for

To add a format, write a module with a class that satisfies `Format`, and give it a row in `FORMATS`.
"""

from __future__ import annotations

import logging
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from ..errors import VolumeError
from . import dicom, nifti
from .archive import EXTENSIONS as ARCHIVES
from .archive import clear_left_behind, is_archive, unpacked
from .dicom_names import EXTENSIONS as DICOM_NAMES
from .memory import open_image
from .volume import (
    DEFAULT_OPTIONS,
    FindOptions,
    Format,
    Geometry,
    NameBy,
    NotCt,
    Ready,
    Refused,
    Scan,
    Slices,
    Volume,
    the_only,
)
from .walk import Walk, first_bytes, identity

__all__ = [
    "DEFAULT_OPTIONS",
    "FORMATS",
    "FindOptions",
    "Format",
    "Geometry",
    "NameBy",
    "NotCt",
    "Ready",
    "Refused",
    "Scan",
    "Slices",
    "Volume",
    "clear_left_behind",
    "find_scans",
    "format_named",
    "format_of",
    "identity",
    "is_archive",
    "is_own_mask",
    "open_image",
    "open_volume",
    "unpacked",
]

log = logging.getLogger(__name__)

# What holds scans and is not read: a line says that such files were passed over.
NOT_READ = (
    *(".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".mnc"),
    *(".bz2", ".xz", ".zst", ".lzma", ".7z", ".rar"),
    *(f"{extension}.gz" for extension in (".hdr", ".img", ".nrrd", ".mnc", *DICOM_NAMES)),
    *(".part", ".crdownload", ".filepart"),  # of a scan that is still on its way
    *ARCHIVES,
)

# Name of a format -> what reads it. In this order they are asked whether they claim a file.
FORMATS: dict[str, Format] = {
    "nifti": nifti.Nifti(),
    "dicom": dicom.Dicom(),
}


def format_of(path: pathlib.Path, head: bytes) -> str | None:
    """The name of the format that claims a file, given its first bytes; None where none does."""
    return next((name for name, candidate in FORMATS.items() if candidate.claims(path, head)), None)


def format_named(path: pathlib.Path) -> str | None:
    """The name of the format whose files are called like this; None where no format's are."""
    return next((name for name, one in FORMATS.items() if path.name.lower().endswith(one.extensions)), None)


def is_own_mask(path: pathlib.Path) -> bool:
    """Whether a file would be a scan by its name, and is not one by its content: this program wrote it."""
    name = format_named(path)
    is_scan_by_name = name is not None and path.is_file() and FORMATS[name].claims(path, b"")
    return is_scan_by_name and format_of(path, first_bytes(path)) is None


def find_scans(source: pathlib.Path, options: FindOptions = DEFAULT_OPTIONS) -> list[Scan]:
    """Every scan of every format in a file or folder, and what may be taken for one, in order of format and name.

    Raises:
        OSError: the folder cannot be read.
        InputError: a format's library is not installed.
    """
    claimed: dict[str | None, list[pathlib.Path]] = defaultdict(list)
    walk = Walk(source, options.leave_out)
    for path, head in walk:
        claimed[format_of(path, head)].append(path)
    folder = source if source.is_dir() else source.parent
    named = [(FORMATS[name], claimed[name]) for name in FORMATS if name in claimed]
    found = [scan for reader, files in named for scan in reader.find(files, folder, options)]
    foreign = [path for path in claimed[None] if path.name.lower().endswith(NOT_READ)]
    _warn_of(source, foreign, "files that are not read, neither NIfTI nor DICOM; convert or unpack them")
    _warn_of(source, walk.dead_links, "links that lead to nothing; what they should lead to is left out")
    return found + [_unreadable(path, folder, reason) for path, reason in walk.unreadable.items()]


def _warn_of(source: pathlib.Path, paths: Sequence[pathlib.Path], what: str) -> None:
    """One line for all files of a kind."""
    if paths:
        example = paths[0].relative_to(source) if source.is_dir() else paths[0].name
        log.warning("%s: %s: %d, such as %s", source, what, len(paths), example)


def _unreadable(path: pathlib.Path, folder: pathlib.Path, reason: str) -> Scan:
    """A folder that may hold scans, for all that is known."""
    line = f"{path}: the folder cannot be read ({reason}); check its permissions"
    return Scan(str(path.relative_to(folder)), path, partial(_refuse, line), Refused(line))


def _refuse(line: str) -> Volume:
    raise VolumeError(line)


def open_volume(path: pathlib.Path) -> Volume:
    """Read a scan's geometry and check that it is a CT that can be segmented; its voxels stay in the file.

    Args:
        path: a file of any format; or a folder that holds one scan.

    Raises:
        VolumeError: it is not; the message says what was found, what is accepted and what to do.
    """
    if path.is_dir():
        return the_only(find_scans(path), path).open()
    name = format_of(path, first_bytes(path))
    if name is None:
        if path.exists() and not path.is_file():
            raise VolumeError(f"{path}: not a regular file (a pipe, socket or device); copy the scan to a file")
        if is_own_mask(path):
            raise VolumeError(f"{path}: a mask that this program wrote; give the scan")
        expected = " or ".join(reader.accepts for reader in FORMATS.values())
        raise VolumeError(f"{path}: not a scan; expected {expected}, check its path and name")
    return FORMATS[name].open(path)
