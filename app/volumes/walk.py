"""Every file of a tree once, with its first bytes, for the formats to claim."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator

HEAD_BYTES = 512  # enough for any format's signature


def files_of(source: pathlib.Path) -> Iterator[tuple[pathlib.Path, bytes]]:
    """Iterate over (file, its first bytes): all of a folder's tree in order of path, or the one file.

    Raises:
        OSError: the folder cannot be read.
    """
    paths = sorted(_paths_below(source)) if source.is_dir() else [source]
    for path in paths:
        yield path, first_bytes(path)


def _paths_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of a tree, whatever they are; hidden ones are left out."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _paths_below(path)
        elif not path.name.startswith(".") and not path.is_dir():
            yield path


def first_bytes(path: pathlib.Path) -> bytes:
    """The first bytes of a file; none where it cannot be read, or is a pipe or device, which might never answer."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, HEAD_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return b""
