"""Write-then-rename: a file appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
import secrets
import time
from collections.abc import Iterator
from typing import BinaryIO

PARTIAL = ".partial"
YOUNG_SECONDS = 5.0  # a partial file this young may not be locked yet


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes `path` when the block ends, replacing a file that is there.

    Until then it has a hidden name in the same folder, and is removed if the block raises. The name is short, so that
    any name that the file system takes for `path` can be written.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    partial = path.parent / f".{secrets.token_hex(8)}{PARTIAL}"
    try:
        with partial.open("xb") as stream:
            with contextlib.suppress(OSError):  # some network file systems know no locks
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the stream is closed
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def beside(base: pathlib.Path, extension: str) -> pathlib.Path:
    """The path of one of a case's files: all have the same name but for the extension, and `base` has none."""
    return base.with_name(base.name + extension)


def clear_stale(folder: pathlib.Path) -> None:
    """Remove the partial files of processes that were killed; those that a live process holds are left alone."""
    for partial in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > YOUNG_SECONDS:
                with partial.open("rb") as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    partial.unlink()
