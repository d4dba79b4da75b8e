"""What there is to do: the scans of a folder, and where their outputs go.

Imports no torch: that import takes most of a short run, and the first scan is decoded meanwhile.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import InputError
from .results import Result, make_results
from .run_log import done_cases
from .volumes import DEFAULT_OPTIONS, FORMATS, FindOptions, NotCt, Ready, Refused, Scan, find_scans, format_of
from .whole_file import clear_stale


@dataclass(frozen=True)
class Case:
    """One scan and where its outputs go.

    Attributes:
        scan: not opened yet; its state is the case's.
        base: OUTPUT and the case's name; each output adds an extension of its own.
        results: the outputs that are wanted, by name.
    """

    scan: Scan
    base: pathlib.Path
    results: Mapping[str, Result] = field(default_factory=make_results)

    @property
    def name(self) -> str:
        """Of the scan."""
        return self.scan.name

    @property
    def size_bytes(self) -> int:
        """Of the scan, about."""
        return self.scan.size_bytes

    @property
    def outputs(self) -> dict[str, pathlib.Path]:
        """Where each output goes."""
        return {name: result.path(self.base, self.scan.mask_extension) for name, result in self.results.items()}

    def refused(self, reason: str) -> Case:
        """The same case with a reason why it cannot be done."""
        return replace(self, scan=replace(self.scan, state=Refused(reason)))


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
    if output.is_file() or format_of(output):
        raise InputError(f"{output}: OUTPUT is a folder; the masks in it get their scans' names")
    cases, inside = [], output.resolve()
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: no such file or folder; give a scan or a folder of scans")
        if source.is_dir() and output.is_dir() and source.samefile(output):
            raise InputError(f"{output}: OUTPUT is the input folder; choose another, or masks would be taken for scans")
        scans = find_scans(source, options)
        if source.resolve() in inside.parents:  # OUTPUT lies in the tree of INPUT
            scans = [scan for scan in scans if inside not in scan.path.resolve().parents]
        if not scans:
            nothing = " and ".join(f"no {reader.accepts}" for reader in FORMATS.values())
            raise InputError(f"{source}: {nothing}; give a scan or a folder of scans")
        cases += [Case(scan, output / scan.name, results) for scan in scans]
    for case in cases:
        if case.scan.series_uid is None and (needy := [name for name, result in results.items() if result.needs_dicom]):
            raise InputError(f"{case.scan.path}: is no DICOM, which --save {', '.join(needy)} needs; leave that out")
    return _checked(cases, output)


def require_ct(cases: Sequence[Case], source: pathlib.Path) -> None:
    """See that there is at least one scan that may be segmented.

    Raises:
        InputError: there is none; the line says what there is instead.
    """
    reasons = [case.scan.state.reason for case in cases if isinstance(case.scan.state, NotCt)]
    if len(reasons) == len(cases):
        shown = "; ".join(sorted(set(reasons))[:3])
        raise InputError(f"{source}: no CT to segment ({shown}); --list-series shows what there is")


def read_list(file: pathlib.Path) -> list[pathlib.Path]:
    """The paths in a text file, one per line; blank lines and lines that start with # are ignored.

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


def _checked(cases: Sequence[Case], output: pathlib.Path) -> list[Case]:
    """The cases, those refused whose outputs would meet another case's, a scan, or a file of others."""
    paths = Counter(path for case in cases for path in case.outputs.values())
    inputs = {_identity(case.scan.path) for case in cases}
    ours = done_cases(output)
    checked = []
    for case in cases:
        problem = _problem(case, paths, inputs, ours) if isinstance(case.scan.state, Ready) else None
        checked.append(case.refused(problem) if problem else case)
    return checked


def _problem(
    case: Case,
    paths: Mapping[pathlib.Path, int],
    inputs: Collection[tuple[int, int] | None],
    ours: Collection[str],
) -> str | None:
    """Why a case's outputs cannot be written, if that is known beforehand. No file that others wrote is overwritten."""
    for name, path in case.outputs.items():
        if paths[path] > 1:
            return f"{case.scan.path}: another scan would get the same mask name {path.name}; rename one"
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
