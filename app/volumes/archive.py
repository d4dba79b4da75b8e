"""INPUT as one archive, as hospitals and web portals send studies: unpacked into a temporary folder."""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import logging
import os
import pathlib
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from ..errors import InputError
from ..ownership import PROGRAM
from .walk import is_hidden

log = logging.getLogger(__name__)

EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz")
DISK_SHARE = 0.8  # of the free disk that an archive may fill
PREFIX = f"{PROGRAM}-unpacked-"  # of the temporary folder's name
LOCK = ".lock"  # in it, held by the process that unpacked it
LONGEST_CHAIN = 40  # of links from one to the next, as in Linux


def is_archive(path: pathlib.Path) -> bool:
    """Whether a file's name is an archive's."""
    return path.name.lower().endswith(EXTENSIONS) and path.is_file()


@contextlib.contextmanager
def unpacked(source: pathlib.Path) -> Iterator[pathlib.Path]:
    """The content of an archive as a folder that is gone after the block; anything else as it is.

    A folder that holds nothing but one folder is passed over, since many programs pack the folder and not its content.
    Only plain files are unpacked, under no path outside the folder, and no more than an archive says it holds: what it
    says is compared with the free disk first.

    Raises:
        InputError: it is damaged, or holds more than the disk.
    """
    if not is_archive(source):
        yield source
        return
    with _scratch_folder() as scratch:
        folder = scratch / source.name
        folder.mkdir()
        try:
            unpack = _unzip if zipfile.is_zipfile(source) else _untar
            unpack(source, Content(source, folder))
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            line = " ".join(str(error).split())
            raise InputError(
                f"{source}: cannot be unpacked ({line}); unpack it yourself and give the folder"
            ) from error
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())  # gzip's own errors have no number
            raise InputError(f"{source}: cannot be unpacked into {scratch} ({reason}); set TMPDIR elsewhere") from error
        yield _inner(folder)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[pathlib.Path]:
    """A temporary folder that is gone after the block; a lock in it says that its process lives.

    Raises:
        InputError: it cannot be made.
    """
    try:
        hidden = pathlib.Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    except OSError as error:
        raise InputError(
            f"no folder for what is unpacked ({error.strerror}); set TMPDIR to one that is writable"
        ) from error
    with (hidden / LOCK).open("x") as lock:
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        scratch = hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))  # nobody meets it without its lock
        try:
            yield scratch
        finally:
            _remove(scratch)


def _remove(scratch: pathlib.Path) -> None:
    """Remove a scratch folder, its lock last: should that be cut short, the next run goes on with it."""
    for path in scratch.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def clear_left_behind() -> None:
    """Remove what killed processes of this user unpacked: patients' data.

    A folder whose process lives is locked, and left alone.
    """
    try:
        folder = pathlib.Path(tempfile.gettempdir())
    except OSError:  # no temporary folder is writable, as in a container with a read-only root
        return
    for lock in folder.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            about = lock.parent.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():  # not what others put in its place
                with lock.open() as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(lock.parent)


def _inner(folder: pathlib.Path) -> pathlib.Path:
    """The first folder that holds more than one folder alone."""
    while True:
        entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


@dataclass
class Content:
    """What is unpacked of an archive.

    Attributes:
        source: the archive.
        folder: where it goes.
        files: path of every file, by the normal form of its name in the archive.
        links: likewise the name that a link leads to.
        renamed: files whose name in the archive another file has, too.
    """

    source: pathlib.Path
    folder: pathlib.Path
    files: dict[str, pathlib.Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    renamed: list[pathlib.Path] = field(default_factory=list)

    def check_room(self, size: int) -> None:
        """Check that there is enough disk for this number of bytes.

        Raises:
            InputError: there is not.
        """
        free = shutil.disk_usage(self.folder).free
        if size > DISK_SHARE * free:
            where = self.folder.parent.parent
            raise InputError(
                f"{self.source}: holds {size >> 20} MiB, {where} has {free >> 20} MiB free; set TMPDIR elsewhere"
            )

    def add(self, name: str, stream: IO[bytes]) -> None:
        """Write a file; a second one of a name that is not the same gets another name, so that neither is lost."""
        path = self._place(name)
        if not path.exists():
            _write(path, stream)
            self.files[normal(name)] = path
            return
        again = self.folder.parent / "again"
        _write(again, stream)
        if not filecmp.cmp(path, again, shallow=False):
            self.renamed.append(again.rename(_free(path)))

    def finish(self) -> None:
        """Make a second name of the file that each link leads to; an empty file where that is not in the archive.

        Links to folders are passed over: what is in these is there under its own name.
        """
        if self.renamed:
            example = self.renamed[0].name
            log.warning(
                "%s: %d files share a name with another; read as %s ...", self.source, len(self.renamed), example
            )
        dead = []
        folders = {posixpath.dirname(name) for name in self.files}
        for name in self.links:
            target, left = name, LONGEST_CHAIN
            while target in self.links and left:
                target, left = self.links[target], left - 1
            if target in self.files:
                path = _free(self._place(name))
                try:
                    os.link(self.files[target], path)
                except OSError:  # a file system without hard links
                    shutil.copyfile(self.files[target], path)
            elif not any(folder == target or folder.startswith(f"{target}/") for folder in folders):
                dead.append(f"{name} -> {self.links[name]}")
                _free(self._place(name)).touch()
        if dead:
            shown = ", ".join(dead[:3]) + (" ..." if len(dead) > 3 else "")
            log.warning("%s: %d links lead to nothing in the archive (%s)", self.source, len(dead), shown)

    def _place(self, name: str) -> pathlib.Path:
        """Where a file goes; a folder that has the name of a file before it gets another one."""
        *folders, last = normal(name).split("/")
        place = self.folder
        for folder in folders:
            place /= folder
            while place.is_file():
                place = place.with_name(f"{place.name}_")
        place.mkdir(parents=True, exist_ok=True)
        return place / last


def normal(name: str) -> str:
    """A member's name without what leads nowhere, or outside."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "nameless"


def _free(path: pathlib.Path) -> pathlib.Path:
    """The path, or where there is a file already, one with a number before its name."""
    number = 2
    free = path
    while free.exists():
        free = path.with_name(f"{number}_{path.name}")
        number += 1
    return free


def _write(path: pathlib.Path, stream: IO[bytes]) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)


def _unzip(source: pathlib.Path, content: Content) -> None:
    with zipfile.ZipFile(source) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        content.check_room(sum(member.file_size for member in members))
        for member in members:
            name = member.filename.replace("\\", "/")  # some programs of Windows
            if stat.S_ISLNK(member.external_attr >> 16):  # as Info-ZIP stores links on Unix
                content.links[normal(name)] = _target(name, os.fsdecode(archive.read(member)))
                continue
            with archive.open(member) as stream:  # gives never more than file_size
                content.add(name, stream)
    content.finish()


def _untar(source: pathlib.Path, content: Content) -> None:
    with tarfile.open(source) as archive:
        members = archive.getmembers()
        content.check_room(sum(member.size for member in members if member.isfile()))
        for member in members:
            if member.isfile():
                tarfile.data_filter(member, str(content.folder))  # refuses paths that lead outside
                stream = archive.extractfile(member)
                if stream is not None:
                    content.add(member.name, stream)
            elif member.islnk():  # the second name of a file
                content.links[normal(member.name)] = normal(member.linkname)
            elif member.issym():
                content.links[normal(member.name)] = _target(member.name, member.linkname)
    content.finish()


def _target(name: str, target: str) -> str:
    """The normal form of what a symbolic link leads to, seen from its own place."""
    return normal(posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))
