"""INPUT as one archive, as hospitals and web portals send studies: unpacked into a temporary folder."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator

from ..errors import InputError

EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz")
DISK_SHARE = 0.8  # of the free disk that an archive may fill


def is_archive(path: pathlib.Path) -> bool:
    """Whether a file's name is an archive's."""
    return path.name.lower().endswith(EXTENSIONS) and path.is_file()


@contextlib.contextmanager
def unpacked(source: pathlib.Path) -> Iterator[pathlib.Path]:
    """The content of an archive as a folder that is gone after the block; anything else as it is.

    Only plain files are unpacked, under no path outside the folder, and no more than an archive says it holds: what it
    says is compared with the free disk first.

    Raises:
        InputError: it is damaged, or holds more than the disk.
    """
    if not is_archive(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="unpacked-") as scratch:
        folder = pathlib.Path(scratch) / source.name
        folder.mkdir()
        try:
            if zipfile.is_zipfile(source):
                _unzip(source, folder)
            else:
                _untar(source, folder)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            line = " ".join(str(error).split())
            raise InputError(
                f"{source}: cannot be unpacked ({line}); unpack it yourself and give the folder"
            ) from error
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())  # gzip's own errors have no number
            raise InputError(f"{source}: cannot be unpacked into {scratch} ({reason}); set TMPDIR elsewhere") from error
        yield folder


def _check_room(source: pathlib.Path, size: int, folder: pathlib.Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > DISK_SHARE * free:
        raise InputError(
            f"{source}: holds {size >> 20} MiB, {folder.parent.parent} has {free >> 20} MiB free; set TMPDIR elsewhere"
        )


def _unzip(source: pathlib.Path, folder: pathlib.Path) -> None:
    with zipfile.ZipFile(source) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        _check_room(source, sum(member.file_size for member in files), folder)
        for member in files:
            archive.extract(member, folder)  # never outside, and never more than file_size


def _untar(source: pathlib.Path, folder: pathlib.Path) -> None:
    with tarfile.open(source) as archive:
        files = [member for member in archive if member.isfile()]
        _check_room(source, sum(member.size for member in files), folder)
        for member in files:
            archive.extract(member, folder, filter="data")  # refuses paths that lead outside
