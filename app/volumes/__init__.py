"""What a scan is, format by format.

volume.py        Geometry, the Volume protocol and Scan: what every format gives
nifti.py         NIfTI-1 and NIfTI-2, plain or gzip; nifti_header.py checks their headers
dicom.py         DICOM series; dicom_slice.py reads headers and pixels, dicom_series.py sorts and checks slices
archive.py       a .zip or .tar.gz of any of these
gzip_file.py     gzip streams, both ways
read_ahead.py    a thread that decodes slices before they are asked for

To add a format, write a module with a `find`, whose scans open as a `Volume`, and give it a row in `FORMATS`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from ..errors import VolumeError
from . import dicom, nifti
from .archive import unpacked
from .volume import DEFAULT_OPTIONS, FindOptions, Geometry, NameBy, Scan, Slices, Volume

__all__ = [
    "DEFAULT_OPTIONS",
    "FORMATS",
    "FindOptions",
    "Geometry",
    "NameBy",
    "Scan",
    "Slices",
    "Volume",
    "find_scans",
    "open_volume",
    "unpacked",
]

# Name of a format -> what finds its scans in a file or folder.
FORMATS: dict[str, Callable[[pathlib.Path, FindOptions], list[Scan]]] = {"nifti": nifti.find, "dicom": dicom.find}


def find_scans(source: pathlib.Path, options: FindOptions = DEFAULT_OPTIONS) -> list[Scan]:
    """Every scan of every format in a file or folder, and what may be taken for one, in order of format and name.

    Raises:
        OSError: the folder cannot be read.
        InputError: a format's library is not installed.
    """
    return [scan for find in FORMATS.values() for scan in find(source, options)]


def open_volume(path: pathlib.Path) -> Volume:
    """Read a scan's geometry and check that it is a CT that can be segmented; its voxels stay in the file.

    Args:
        path: a NIfTI file; or a folder, or a file, that holds one DICOM series.

    Raises:
        VolumeError: it is not; the message says what was found, what is accepted and what to do.
    """
    if not path.is_dir() and not dicom.is_dicom(dicom.first_bytes(path)):
        return nifti.open_nifti(path)
    scans = [scan for scan in dicom.find(path) if scan.not_ct is None]
    if len(scans) != 1:
        names = ", ".join(scan.name for scan in scans[:5]) or "none"
        raise VolumeError(f"{path}: expected one CT series, found {len(scans)} ({names}); give one series' folder")
    return scans[0].open()
