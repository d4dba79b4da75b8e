"""What there is to do: the scans of a folder, where their masks go, and the next scan opened ahead of its turn.

Imports no torch: that import takes most of a short run, and the first scan is decoded meanwhile.
"""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from .errors import InputError, VolumeError
from .volumes import Slices, Volume, extension_of, open_volume

CHANNEL = "_0000"  # the number of the first channel, which nnU-Net and FLARE add to a scan's name


@dataclass(frozen=True)
class Case:
    """One scan and where its mask goes; `problem` says why it cannot be done, if that is known beforehand."""

    name: str
    scan_path: pathlib.Path
    mask_path: pathlib.Path
    problem: str | None = None


def find_cases(source: pathlib.Path, output: pathlib.Path) -> list[Case]:
    """The scans of a folder (not of its subfolders), or the one file, and where their masks go.

    Raises:
        InputError: there is nothing to segment, or the output folder cannot be used.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a .nii.gz file or a folder of them")
    if output.is_file() or output.name.endswith((".nii.gz", ".nii")):
        raise InputError(f"{output}: OUTPUT is a folder; the mask gets its scan's name without _0000")
    if source.is_dir() and output.is_dir() and source.samefile(output):
        raise InputError(f"{output}: OUTPUT is the input folder; choose another, or masks would be taken for scans")
    try:
        paths = sorted(source.iterdir()) if source.is_dir() else [source]
    except OSError as error:
        raise InputError(f"{source}: cannot be listed ({error.strerror}); check its permissions") from error
    scans = [path for path in paths if extension_of(path)]
    if not scans:
        raise InputError(f"{source}: no .nii.gz or .nii file; convert DICOM with dcm2niix")
    cases = [_case(path, output) for path in scans]
    names = Counter(case.mask_path for case in cases)
    return [_clashing(case) if names[case.mask_path] > 1 else case for case in cases]


def _clashing(case: Case) -> Case:
    line = f"{case.scan_path}: another scan would get the same mask name {case.mask_path.name}; rename one"
    return replace(case, problem=line)


def _case(path: pathlib.Path, output: pathlib.Path) -> Case:
    extension = extension_of(path) or ""
    name = path.name.removesuffix(extension).removesuffix(CHANNEL)
    mask_path = output / (name + extension)
    if mask_path.exists() and mask_path.samefile(path):
        return Case(name, path, mask_path, f"{path}: its mask would overwrite it; choose another OUTPUT folder")
    return Case(name, path, mask_path)


def check_output(folder: pathlib.Path) -> None:
    """Make the output folder, and see that a file can be made in it.

    Raises:
        InputError: it cannot.
    """
    probe = folder / f".{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: not writable ({error.strerror}); check its owner, or docker run --user") from error


Opened = Future[tuple[Volume, Slices]]


class CaseQueue(Iterator[tuple[Case, Opened | None]]):
    """Iterates over cases, each with its scan; opens a scan, and begins to decode it, one case ahead of its turn.

    A case's future raises VolumeError if its scan cannot be opened; there is None for a case that is skipped.
    """

    def __init__(self, cases: Sequence[Case], skip_existing: bool = False) -> None:
        self.total = len(cases)
        self._left = list(cases)
        self._skip_existing = skip_existing
        self._pool = ThreadPoolExecutor(1, "open-ahead")
        self._next = self._begin()

    def _begin(self) -> Opened | None:
        if not self._left or (self._skip_existing and self._left[0].mask_path.exists()):
            return None
        return self._pool.submit(open_case, self._left[0])

    def __next__(self) -> tuple[Case, Opened | None]:
        if not self._left:
            raise StopIteration
        case, opened = self._left.pop(0), self._next
        self._next = self._begin()
        return case, opened

    def close(self) -> None:
        """End the decoding of a scan that nobody took."""
        self._pool.shutdown()
        if self._next is not None and self._next.exception() is None:
            self._next.result()[1].close()


def open_case(case: Case) -> tuple[Volume, Slices]:
    """Open a case's scan and begin to decode it.

    Raises:
        VolumeError: the scan cannot be read as a CT, or the case has a problem that is known beforehand.
    """
    if case.problem:
        raise VolumeError(case.problem)
    volume = open_volume(case.scan_path)
    return volume, volume.slices()
