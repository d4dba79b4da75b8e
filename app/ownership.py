"""Recognise this program's own files by their content, so that no file that others wrote or changed is replaced.

Whatever is written carries a mark within its first bytes, a digest and the length of its own content. A mask that
somebody corrected no longer fits its mark. What a crash left is empty, zeros, or ends before its content does.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Protocol

PROGRAM = "hrnet-ocr-abdomen"  # what outputs call their maker
BLANK = b"sha256:" + b"0" * 32 + b":" + b"0" * 8  # a mark before it is known
HEAD_BYTES = 4096  # within which the mark lies
CHUNK_BYTES = 1 << 20  # hashed at a time
LENGTHS = 1 << 32  # a length is kept modulo this, as gzip does
_MARK = re.compile(rb"sha256:[0-9a-f]{32}:([0-9a-f]{8})")


class Readable(Protocol):
    """What has a `read`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


def mark_of(parts: Iterable[bytes | memoryview]) -> bytes:
    """The mark of content that has `BLANK` where the mark will be: half of its SHA-256, and its length in bytes."""
    digest, length = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        length += len(part)
    return b"sha256:" + digest.hexdigest()[:32].encode() + f":{length % LENGTHS:08x}".encode()


def marked(content: bytes) -> bytes:
    """The content with its mark in the place of `BLANK`."""
    return content.replace(BLANK, mark_of([content]), 1)


def mark_in(head: bytes) -> bytes | None:
    """The mark in a file's first bytes; None where there is none."""
    found = _MARK.search(head[:HEAD_BYTES])
    return found[0] if found else None


def has_mark(head: bytes) -> bool:
    """Whether there is a mark in a file's first bytes."""
    return mark_in(head) is not None


def fits_mark(head: bytes, length: int) -> bool:
    """Whether content is as long as the mark in its first bytes says; True where there is no mark."""
    found = _MARK.search(head[:HEAD_BYTES])
    return found is None or int(found[1], 16) == length % LENGTHS


def is_unchanged(stream: Readable) -> bool:
    """Whether content is what was marked; False where there is no mark."""
    head = b""
    while len(head) < HEAD_BYTES and (more := stream.read(HEAD_BYTES - len(head))):
        head += more
    found = _MARK.search(head)
    if found is None:
        return False

    def parts() -> Iterator[bytes]:
        yield head[: found.start()] + BLANK + head[found.end() :]
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk

    return mark_of(parts()) == found[0]


def wrote(path: pathlib.Path) -> bool:
    """Whether a file may be replaced: it is as this program wrote it, or holds nothing.

    A file without a mark is one of an earlier version if the program's name is in its first bytes.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            if not has_mark(head):
                return not any(head) or PROGRAM.encode() in head
            stream.seek(0)
            return is_unchanged(stream)
    except OSError:
        return False
