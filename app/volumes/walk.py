"""Every file of a tree once, with its first bytes, for the formats to claim."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

HEAD_BYTES = 4096  # enough for any format's signature, and for a compressed NIfTI header
# Folders that systems make and no user: deleted files, previews, what an archive of macOS brings along.
NOT_THE_USER_S = {"$recycle.bin", "system volume information", "#recycle", "@eadir", "__macosx", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, somewhere in INPUT, is to be left out."""
    return name.startswith(".") or name.lower() in NOT_THE_USER_S


@dataclass
class Walk:
    """Walks INPUT: iterates over (file, its first bytes), in order of path.

    Links to folders are followed: each folder is walked once, under its own path if it has one in the tree, and a
    link that leads back to where it comes from ends there. Hidden folders are left out.

    Attributes:
        source: a folder, or one file.
        leave_out: a folder that is not walked, OUTPUT.
        unreadable: folders that could not be read, and why; known when the walk has ended.
        dead_links: links that lead to nothing, which may be folders; likewise.
    """

    source: pathlib.Path
    leave_out: pathlib.Path | None = None
    unreadable: dict[pathlib.Path, str] = field(default_factory=dict)
    dead_links: list[pathlib.Path] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[pathlib.Path, bytes]]:
        if not self.source.is_dir():
            yield self.source, first_bytes(self.source)
            return
        self._left_out = identity(self.leave_out) if self.leave_out else None
        self._walked: set[str] = set()
        self._links: list[pathlib.Path] = []
        files = self._files_in(self.source, is_root=True)
        while self._links:  # a folder that lies in the tree itself was walked by now
            link = self._links.pop(0)
            target = pathlib.Path(os.path.realpath(link))
            if target not in pathlib.Path(os.path.realpath(link.parent), "x").parents:
                files += self._files_in(link)
        for path in sorted(files):
            yield path, first_bytes(path)

    def _files_in(self, folder: pathlib.Path, is_root: bool = False) -> list[pathlib.Path]:
        """The files of a folder's tree; links to folders are noted.

        Raises:
            OSError: the root cannot be read.
        """
        here = os.path.realpath(folder)  # not its identity: on some file systems, folders share their numbers
        if here in self._walked or (self._left_out and identity(folder) == self._left_out):
            return []
        self._walked.add(here)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if is_root:
                raise
            self.unreadable[folder] = error.strerror or str(error)
            return []
        files = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = folder / entry.name
            if not _is_folder(entry):
                files.append(path)
                if entry.is_symlink() and identity(path) is None:
                    self.dead_links.append(path)
            elif entry.is_symlink():
                self._links.append(path)
            else:
                files += self._files_in(path)
        return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False


def identity(path: pathlib.Path) -> tuple[int, int | str] | None:
    """What tells a file or folder from others, whatever links lead to it; None where there is none.

    Some file systems of networks and of user space number no file: all have 0.
    """
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino or os.path.realpath(path)


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
