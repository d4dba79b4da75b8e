"""Files that appear under their names when they are complete, or not at all; and how a case's files are called."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import time
import unicodedata
from collections.abc import Iterator
from typing import BinaryIO

PARTIAL = ".partial"
NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}  # some file systems of networks and of user space know none
ESCAPED = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control characters, surrogates and ends of lines
YOUNG_SECONDS = 5.0  # a partial file this young may not be locked yet


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes `path` when the block ends, replacing a file that is there.

    Until then it has a hidden name in the same folder, and is removed if the block raises. The name is short, so that
    any name that the file system takes for `path` can be written. The content is on the disk before it gets its name:
    a machine that loses its power leaves no empty file behind.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    partial = path.parent / f".{secrets.token_hex(8)}{PARTIAL}"
    try:
        with partial.open("xb") as stream:
            with contextlib.suppress(OSError):  # some network file systems know no locks
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the stream is closed
            yield stream
            stream.flush()
            _on_disk(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _on_disk(descriptor: int) -> None:
    """See that what was written is on the disk.

    Raises:
        OSError: it cannot be put there, which some network file systems say only now.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def printable(text: str) -> str:
    r"""Text as it can be shown and encoded everywhere: `\xe9` for a byte of a name that is not UTF-8, `\n` for a line.

    File names may hold any byte but two; Python keeps those that are not UTF-8 as lone surrogates.
    """
    return "".join(_escaped(one) if unicodedata.category(one) in ESCAPED else one for one in text)


def _escaped(character: str) -> str:
    code = ord(character)
    # The range that bytes have under Python's `surrogateescape`, PEP 383.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


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
