"""Write-then-rename: a file appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes `path` when the block ends, replacing a file that is there.

    Until then it has a hidden name in the same folder, which is removed if the block raises.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        with partial.open("xb") as stream:
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
