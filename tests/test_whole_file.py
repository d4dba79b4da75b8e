"""Files are whole and on the disk before they get their names; names can be shown whatever bytes they have."""

from __future__ import annotations

import errno
import os
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.whole_file import beside, clear_stale, printable, whole_file


def write(path: pathlib.Path) -> None:
    with whole_file(path) as stream:
        stream.write(b"content")


def test_the_content_is_on_the_disk_before_it_gets_its_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses its power after the rename keeps the name; without the sync, not always the content."""
    happened: list[str] = []
    sync, rename = os.fsync, pathlib.Path.replace

    def fsync(descriptor: int) -> None:
        happened.append(f"sync of {os.fstat(descriptor).st_size} bytes")
        sync(descriptor)

    def replace(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        happened.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(pathlib.Path, "replace", replace)
    write(tmp_path / "file")
    assert happened == ["sync of 7 bytes", "rename"]


@pytest.mark.parametrize(
    ("number", "is_written"), [(errno.EINVAL, True), (errno.ENOSYS, True), (errno.EIO, False), (errno.EDQUOT, False)]
)
def test_a_disk_that_refuses_at_last_is_believed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int, is_written: bool
) -> None:
    """Some network file systems say only now that there is no room; others know no sync at all."""

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if is_written:
        write(tmp_path / "file")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write(tmp_path / "file")
        assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=40).filter(lambda name: b"\0" not in name))
def test_a_name_of_any_bytes_can_be_shown_on_one_line(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    shown.encode()
    assert len(shown.splitlines()) <= 1
    if name.isascii() and name.decode().isprintable():
        assert shown == name.decode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9", r"caf\xe9"),
        ("café 日本　語".encode(), "café 日本　語"),
        (b"a\nb\x1b[31m", r"a\nb\x1b[31m"),
        ("a\u2028b".encode(), r"a\u2028b"),
        (b"plain_0000.nii.gz", "plain_0000.nii.gz"),
    ],
)
def test_what_is_escaped(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


def test_a_lone_surrogate_that_no_file_has_is_escaped_too() -> None:
    assert printable("\ud800") == r"\ud800"


def test_names_beside_each_other() -> None:
    assert beside(pathlib.Path("out/a.v2"), ".seg.dcm") == pathlib.Path("out/a.v2.seg.dcm")


def test_partial_files_of_the_dead_are_cleared_and_those_of_the_living_kept(tmp_path: pathlib.Path) -> None:
    long_ago = time.time() - 100
    (tmp_path / ".dead.partial").touch()
    os.utime(tmp_path / ".dead.partial", (long_ago, long_ago))
    with whole_file(tmp_path / "living.txt") as stream:
        stream.write(b"half")
        stream.flush()
        (partial,) = tmp_path.glob(".????????????????.partial")
        os.utime(partial, (long_ago, long_ago))
        clear_stale(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [partial.name]
    assert [p.name for p in tmp_path.iterdir()] == ["living.txt"]
