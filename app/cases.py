"""What there is to do: the scans of a folder, where their masks go, and the next scan opened ahead of its turn.

Imports no torch: that import takes most of a short run, and the first scan is decoded meanwhile.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from .errors import InputError, VolumeError
from .failures import read_failure
from .results import Result, make_results
from .run_log import CaseRecord, done_cases
from .volumes import DEFAULT_OPTIONS, FindOptions, Scan, Slices, Volume, find_scans
from .volumes.nifti import CHANNEL, extension_of
from .whole_file import clear_stale


@dataclass(frozen=True)
class Case:
    """One scan and where its mask goes.

    Attributes:
        scan: not opened yet.
        mask_path: of its NIfTI mask, and the pattern of its other outputs' paths.
        results: the outputs that are wanted, by name.
        problem: a line that says why it cannot be done, if that is known beforehand.
    """

    scan: Scan
    mask_path: pathlib.Path
    results: Mapping[str, Result] = field(default_factory=make_results)
    problem: str | None = None

    @property
    def name(self) -> str:
        """Of the scan."""
        return self.scan.name

    @property
    def size_bytes(self) -> int:
        """Of the scan, about."""
        return self.scan.size_bytes

    def ignored(self) -> CaseRecord:
        """What the log says of it if it is nothing to segment."""
        return CaseRecord(self.name, "ignored", self.scan.not_ct, series_uid=self.scan.series_uid)

    @property
    def outputs(self) -> dict[str, pathlib.Path]:
        """Where each output goes."""
        return {name: result.path(self.mask_path) for name, result in self.results.items()}


def find_cases(
    source: pathlib.Path | Sequence[pathlib.Path],
    output: pathlib.Path,
    results: Mapping[str, Result] | None = None,
    options: FindOptions = DEFAULT_OPTIONS,
) -> list[Case]:
    """The scans of a folder, or of one file, and where their outputs go; the tree of the scans is mirrored.

    Args:
        source: INPUT; or several, one after the other.
        output: OUTPUT; scans inside it are left alone.
        results: outputs that are wanted, by name; None: `make_results`.
        options: how scans are looked for.

    Raises:
        InputError: there is nothing to segment, or a folder cannot be used.
    """
    sources = [source] if isinstance(source, pathlib.Path) else source
    try:
        return _find_cases(sources, output, make_results() if results is None else results, options)
    except OSError as error:
        where = error.filename or sources[0]
        raise InputError(f"{where}: cannot be used ({error.strerror}); check its path and permissions") from error


def _find_cases(
    sources: Sequence[pathlib.Path], output: pathlib.Path, results: Mapping[str, Result], options: FindOptions
) -> list[Case]:
    if output.is_file() or extension_of(output):
        raise InputError(f"{output}: OUTPUT is a folder; the mask gets its scan's name without {CHANNEL}")
    scans, inside = [], output.resolve()
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: no such file or folder; give a scan or a folder of scans")
        if source.is_dir() and output.is_dir() and source.samefile(output):
            raise InputError(f"{output}: OUTPUT is the input folder; choose another, or masks would be taken for scans")
        found = find_scans(source, options)
        if source.resolve() in inside.parents:  # OUTPUT lies in the tree of INPUT
            found = [scan for scan in found if inside not in scan.path.resolve().parents]
        if not found:
            raise InputError(f"{source}: no .nii.gz or .nii file and no DICOM; give a scan or a folder of scans")
        scans += found
    cases = [Case(scan, output / (scan.name + scan.mask_extension), results) for scan in scans]
    for case in cases:
        if case.scan.series_uid is None and (needy := [name for name, result in results.items() if result.needs_dicom]):
            raise InputError(f"{case.scan.path}: is no DICOM, which --save {', '.join(needy)} needs; leave that out")
    names = Counter(case.mask_path for case in cases)
    inputs = {_identity(case.scan.path) for case in cases}
    ours = done_cases(output)
    return [replace(case, problem=_problem(case, names[case.mask_path], inputs, ours)) for case in cases]


def read_list(file: pathlib.Path) -> list[pathlib.Path]:
    """The paths in a text file, one per line; empty lines and those that begin with # are none.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a list of paths ({error}); give a text file") from error
    paths = [pathlib.Path(line) for line in lines if line and not line.startswith("#")]
    if not paths:
        raise InputError(f"{file}: holds no path; expected one scan or folder per line")
    return paths


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
    """What tells a file from others, whatever links lead to it; None where there is no file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _problem(
    case: Case, same_name: int, inputs: Collection[tuple[int, int] | None], ours: Collection[str]
) -> str | None:
    """Why a case cannot be done, if that is known beforehand. No file that others wrote is overwritten."""
    if case.scan.problem:
        return case.scan.problem
    if same_name > 1:
        return f"{case.scan.path}: another scan would get the same mask name {case.mask_path.name}; rename one"
    for name, path in case.outputs.items():
        there = _identity(path)
        if there in inputs and there is not None:
            return f"{case.scan.path}: its mask would overwrite the scan {path}; choose another OUTPUT folder"
        if there is not None and case.name not in ours and not case.results[name].wrote(path):
            return (
                f"{case.scan.path}: its mask would overwrite {path}, which this program did not write; "
                "move that file, or choose another OUTPUT folder"
            )
    return None


def check_output(folder: pathlib.Path) -> None:
    """Make the output folder, see that a file can be made in it, and clear what killed runs left behind.

    Raises:
        InputError: it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: not writable ({error.strerror}); check its owner, or docker run --user") from error
    clear_stale(folder)


Opened = Future[tuple[Volume, Slices]]


@dataclass(frozen=True)
class Skip:
    """Why a case is left out: an earlier run dealt with it.

    Attributes:
        reason: for a line.
        failed_before: whether that run could not do it.
    """

    reason: str
    failed_before: bool

    def record(self, case: Case) -> CaseRecord:
        """What the log says of the case."""
        return CaseRecord(case.name, "skipped", self.reason if self.failed_before else None)


def why_skipped(case: Case, retry_failed: bool = False) -> Skip | None:
    """Why a case need not be done again; None if it has to be."""
    if all(_identity(path) is not None for path in case.outputs.values()):
        return Skip("its mask exists", failed_before=False)
    failure = read_failure(case.mask_path)
    if failure and not failure[2] and not retry_failed:
        return Skip(f"it failed before ({failure[0]}); --retry-failed tries again", failed_before=True)
    return None


@dataclass(frozen=True)
class Turn:
    """A case whose turn it is.

    Attributes:
        case: which one.
        opened: its scan; None if there is nothing to do. Raises VolumeError if the scan cannot be opened.
        skip: why it is left out; None if it is not.
    """

    case: Case
    opened: Opened | None
    skip: Skip | None = None


class CaseQueue(Iterator[Turn]):
    """Iterates over cases, each with its scan; opens a scan, and begins to decode it, one case ahead of its turn.

    Args:
        cases: in this order.
        skip_existing: leave out cases whose outputs are there, and those that failed before.
        retry_failed: but not the latter.
    """

    def __init__(self, cases: Sequence[Case], skip_existing: bool = False, retry_failed: bool = False) -> None:
        self.total = len(cases)
        self.is_resumed = skip_existing
        self._left = list(cases)
        self._retry_failed = retry_failed
        self._pool = ThreadPoolExecutor(1, "open-ahead")
        self._next = self._begin()

    def _begin(self) -> Turn | None:
        if not self._left:
            return None
        case = self._left.pop(0)
        if case.scan.not_ct:
            return Turn(case, None)
        if self.is_resumed and (skip := why_skipped(case, self._retry_failed)):
            return Turn(case, None, skip)
        return Turn(case, self._pool.submit(open_case, case))

    def __next__(self) -> Turn:
        turn = self._next
        if turn is None:
            raise StopIteration
        self._next = self._begin()
        return turn

    def close(self) -> None:
        """End the decoding of a scan that nobody took."""
        self._pool.shutdown()
        opened = self._next.opened if self._next else None
        if opened is not None and opened.exception() is None:
            opened.result()[1].close()


def open_case(case: Case) -> tuple[Volume, Slices]:
    """Open a case's scan and begin to decode it.

    Raises:
        VolumeError: the scan cannot be read as a CT, or the case has a problem that is known beforehand.
    """
    if case.problem:
        raise VolumeError(case.problem)
    volume = case.scan.open()
    return volume, volume.slices()
