"""Gzip files, both ways, by ISA-L, which is several times faster than zlib."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from isal import igzip, isal_zlib

MAGIC = b"\x1f\x8b"
MAX_RATIO = 1032  # zlib's technical details: no deflate stream expands further
DECODE_ERROR: Any = isal_zlib.error  # an exception class, raised while reading, beside OSError and EOFError


def is_gzip(path: pathlib.Path) -> bool:
    """Whether a file's first bytes say gzip, whatever its name says."""
    with path.open("rb") as stream:
        return stream.read(2) == MAGIC


@contextlib.contextmanager
def open_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed where it is gzip.

    Raises:
        OSError, EOFError, DECODE_ERROR: while reading, where the file is damaged.
    """
    compressed = is_gzip(path)
    with path.open("rb") as raw:
        if compressed:
            with igzip.IGzipFile(fileobj=raw, mode="rb") as stream:
                yield stream
        else:
            yield raw


def compressing(raw: BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    """A stream that writes to `raw` as gzip, fast, and the same bytes for the same content."""
    stream: contextlib.AbstractContextManager[BinaryIO] = igzip.IGzipFile("", "wb", 1, raw, mtime=0)
    return stream
