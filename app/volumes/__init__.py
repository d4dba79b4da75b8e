"""What a scan is, format by format.

volume.py      Geometry and the Volume protocol: what every format gives
nifti.py       NIfTI-1 and NIfTI-2, plain or gzip
gzip_file.py   gzip streams, both ways
read_ahead.py  a thread that decodes slices before they are asked for

To add a format, write a module with a class that satisfies `Volume`, and give it a row in `FORMATS`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from . import nifti
from .volume import Geometry, Slices, Volume

__all__ = ["FORMATS", "Geometry", "Slices", "Volume", "extension_of", "open_volume"]

# File-name extension -> what opens such a file. A longer extension comes before its own ending.
FORMATS: dict[str, Callable[[pathlib.Path], Volume]] = {".nii.gz": nifti.open_nifti, ".nii": nifti.open_nifti}


def extension_of(path: pathlib.Path) -> str | None:
    """The extension, in lower case, by which a file counts as a scan; None for other files and for hidden ones."""
    if path.name.startswith("."):
        return None
    return next((extension for extension in FORMATS if path.name.lower().endswith(extension)), None)


def open_volume(path: pathlib.Path) -> Volume:
    """Read a scan's geometry and check that it is a CT that can be segmented; its voxels stay in the file.

    Raises:
        VolumeError: it is not; the message says what was found, what is accepted and what to do.
    """
    return FORMATS[extension_of(path) or ".nii"](path)
