"""What there is to do: the scans of a folder, and where their outputs go.

Imports no torch: that import takes most of a short run, and the first scan is decoded meanwhile.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from .errors import InputError, ResultError, VolumeError
from .letter_case import folded, ignores_case, names_in, other_name
from .results import Result, make_results
from .run_log import RUN_LOG, done_cases
from .volumes import (
    DEFAULT_OPTIONS,
    FORMATS,
    FindOptions,
    NotCt,
    Ready,
    Refused,
    Scan,
    Volume,
    find_scans,
    format_named,
    identity,
    is_own_mask,
)
from .whole_file import clear_stale


@dataclass(frozen=True)
class Case:
    """One scan and where its outputs go.

    Attributes:
        scan: not opened yet; its state is the case's.
        base: OUTPUT and the case's name; each output adds an extension of its own.
        results: the outputs that are wanted, by name.
        is_name_taken: whether its outputs have another scan's names, so that files of these names are not its own.
    """

    scan: Scan
    base: pathlib.Path
    results: Mapping[str, Result] = field(default_factory=make_results)
    is_name_taken: bool = False

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
        source: INPUT; or several, one after the other. One of several that cannot be used is a refused case.
        output: OUTPUT; scans inside it are left alone.
        results: outputs that are wanted, by name; None: `make_results`.
        options: how scans are looked for.

    Raises:
        InputError: there is nothing to segment, or a folder cannot be used.
    """
    sources = [source] if isinstance(source, pathlib.Path) else source
    results = make_results() if results is None else results
    if output.is_file() or format_named(output):
        raise InputError(f"{output}: OUTPUT must be a folder, not a file; masks in it are named after their scans")
    options = replace(options, leave_out=output)
    scans: dict[tuple[str, str], Scan] = {}  # each once, if it was named twice
    failures: list[InputError] = []
    for one in sources:
        try:
            found = _scans_of(one, output, options)
        except InputError as error:
            failures.append(error)
            found = [_refused_source(one, error)]
        scans |= {(scan.name, os.path.realpath(scan.path)): scan for scan in found}
    if len(failures) == len(sources):
        raise failures[0]
    cases = [Case(scan, output / scan.name, results) for scan in scans.values()]
    return _checked(_with_dicom(cases, results), output)


def _with_dicom(cases: Sequence[Case], results: Mapping[str, Result]) -> list[Case]:
    """The cases, those refused whose outputs all need DICOM though their scans are none.

    Where other outputs are wanted too, those are written, and writing fails for the rest.

    Raises:
        InputError: no scan is DICOM.
    """
    needy = [name for name, result in results.items() if result.needs_dicom]
    ready = [case.scan for case in cases if isinstance(case.scan.state, Ready)]
    lines = {
        scan.path: f"{scan.path}: not DICOM, which --save {', '.join(needy)} needs; leave that out"
        for scan in ready
        if needy and scan.series_uid is None
    }
    if lines and len(lines) == len(ready):
        raise InputError(next(iter(lines.values())))
    if len(needy) < len(results):
        return list(cases)
    return [case.refused(lines[case.scan.path]) if case.scan.path in lines else case for case in cases]


def _scans_of(source: pathlib.Path, output: pathlib.Path, options: FindOptions) -> list[Scan]:
    """The scans in a folder or file that the user named.

    Raises:
        InputError: there are none, or it cannot be used.
    """
    try:
        if not source.exists():
            place = "" if source.is_absolute() else f" in {pathlib.Path.cwd()}"
            raise InputError(f"{source}: no such file or folder{place}; give a scan or a folder of scans")
        if source.is_dir() and output.is_dir() and identity(source) == identity(output):
            raise InputError(f"{output}: OUTPUT is the input folder; choose another, or masks would be taken for scans")
        scans = find_scans(source, options)
        if source.is_dir():
            logged: dict[pathlib.Path, set[str]] = {}
            scans = [scan for scan in scans if not _is_output(scan, source, logged)]
        if not scans:
            raise InputError(f"{source}: {_nothing_in(source, options)}, or give a scan or a folder of scans")
    except OSError as error:
        where = error.filename or source
        raise InputError(f"{where}: cannot be used ({error.strerror}); check its path and permissions") from error
    return scans


def _is_output(scan: Scan, source: pathlib.Path, logged: dict[pathlib.Path, set[str]]) -> bool:
    """Whether a NIfTI file is the mask of a case, as the run log of an earlier OUTPUT inside INPUT says.

    This program's own masks are known by their content; this one was corrected by another.

    Args:
        scan: found in INPUT.
        source: INPUT, a folder.
        logged: the cases that a folder's run log says were done; gets those that are asked for.
    """
    for folder in scan.path.parents if scan.mask_extension is not None else ():
        if folder not in logged:
            logged[folder] = done_cases(folder) if (folder / RUN_LOG).is_file() else set()
        name = scan.path.relative_to(folder).as_posix()
        if logged[folder] & {name, name.removesuffix(scan.mask_extension or scan.path.suffix)}:
            return True
        if folder == source:
            break
    return False


def _nothing_in(source: pathlib.Path, options: FindOptions) -> str:
    """What INPUT lacks, and what it may have instead."""
    if is_own_mask(source):
        return "a mask that this program wrote; give its scan"
    if source.name.upper() == "DICOMDIR" and source.is_file():
        return "only lists the files beside it; give the folder that it lies in"
    nothing = " and ".join(f"no {reader.accepts}" for reader in FORMATS.values())
    deeper = [] if options.recursive or not source.is_dir() else find_scans(source, replace(options, recursive=True))
    return nothing + (f", but {len(deeper)} scans in subfolders; add --recursive" if deeper else "; check the path")


def _refused_source(source: pathlib.Path, error: InputError) -> Scan:
    """A path of a list that cannot be used, as a case that fails: under the name that its scan would have."""
    name = format_named(source)
    with contextlib.suppress(OSError, ValueError, InputError):
        if name and (found := FORMATS[name].find([source], source.parent, DEFAULT_OPTIONS)):
            return replace(found[0], state=Refused(str(error)))
    return Scan(source.name or str(source), source, partial(_refuse, error), Refused(str(error)))


def _refuse(error: InputError) -> Volume:
    raise VolumeError(str(error))


def require_ct(cases: Sequence[Case], source: pathlib.Path) -> None:
    """See that there is at least one scan that may be segmented.

    Raises:
        InputError: there is none; the line says what there is instead.
    """
    reasons = [case.scan.state.reason for case in cases if isinstance(case.scan.state, NotCt)]
    if len(reasons) == len(cases):
        shown = "; ".join(sorted(set(reasons))[:3])
        remedy = "give the folder of its series" if source.is_file() else "--list-series shows what there is"
        raise InputError(f"{source}: no CT to segment ({shown}); {remedy}")


def read_list(file: pathlib.Path) -> list[pathlib.Path]:
    """The paths in a text file, one per line, each once; blank lines and lines that start with # are ignored.

    Paths are taken byte for byte, since they need not be UTF-8; a byte-order mark, which editors of Windows put first,
    is not part of the first one.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    try:
        content = file.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.decode("utf-16").encode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a list of paths ({error}); give a text file") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in content.replace(b"\r", b"\n").split(b"\n")]
    if any(b"\0" in line for line in lines):
        raise InputError(f"{file}: cannot be read as a list of paths (it holds zeros); give a text file")
    paths = [pathlib.Path(os.fsdecode(line)) for line in lines if line and not line.startswith(b"#")]
    if not paths:
        raise InputError(f"{file}: holds no path; expected one scan or folder per line")
    return list(dict.fromkeys(paths))


def _checked(cases: Sequence[Case], output: pathlib.Path) -> list[Case]:
    """The cases, those refused whose outputs would meet another case's, or a scan."""
    bases = {case.base for case in cases}
    is_folding = len(set(map(folded, bases))) < len(bases) and ignores_case(output)
    name_of: Callable[[pathlib.Path], str] = folded if is_folding else str
    same_base = Counter(name_of(case.base) for case in cases)
    inputs = {identity(case.scan.path) for case in cases} - {None}
    names = {folder: names_in(folder) for folder in {base.parent for base in bases}}
    checked = []
    for case in cases:
        problem, is_name_taken = None, True
        if isinstance(case.scan.state, Ready):
            if same_base[name_of(case.base)] > 1:  # and so its pages and its line of the log
                name = next(iter(case.outputs.values()), case.base).name
                letters = ", since OUTPUT takes small and capital letters for the same" if is_folding else ""
                problem = f"another scan would get the same mask name {name}{letters}; rename one"
            elif there := [path for path in case.outputs.values() if identity(path) in inputs]:
                problem = f"its mask would overwrite the scan {there[0]}; choose another OUTPUT folder"
                is_name_taken = False
            elif others := [
                path.with_name(other)
                for path in case.outputs.values()
                if (other := other_name(path, names[case.base.parent]))
            ]:
                problem = (
                    f"it would overwrite {others[0]} of another scan, since OUTPUT takes small and capital letters for "
                    "the same; rename one, or choose another OUTPUT folder"
                )
        refused = case.refused(f"{case.scan.path}: {problem}")
        checked.append(replace(refused, is_name_taken=is_name_taken) if problem else case)
    return checked


def check_outputs(case: Case) -> None:
    """See that nothing is overwritten that this program did not write, or that somebody changed since.

    Raises:
        ResultError: there is such a file.
    """
    for name, path in case.outputs.items():
        if identity(path) is not None and not case.results[name].wrote(path):
            raise ResultError(
                f"{case.scan.path}: its mask would overwrite {path}, which this program did not write, or which was "
                "changed since; move that file, or choose another OUTPUT folder"
            )


def check_output(folder: pathlib.Path, cases: Sequence[Case] = ()) -> None:
    """Make the output folder, see that a file can be made in it, and clear what killed runs left behind.

    Args:
        folder: OUTPUT.
        cases: what will be written to it, or to subfolders.

    Raises:
        InputError: it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: a file or a dead link is in its way; choose another OUTPUT folder") from error
    except OSError as error:
        raise InputError(f"{folder}: not writable ({error.strerror}); check its owner, or docker run --user") from error
    for place in {folder, *(case.base.parent for case in cases)}:
        clear_stale(place)
