"""What is written of a case: one class per output, one table from the name of an output to its class.

result.py             Result, what each output offers
nifti_mask.py         the mask on the scan's own grid; named_mask.py: with the names of its labels
dicom_result.py       what all DICOM outputs share
dicom_seg.py          the mask as a DICOM segmentation
rtstruct.py           outlines as a DICOM structure set
structured_report.py  volumes as a DICOM structured report
statistics.py         numbers of every organ; kidneys.py tells the left kidney from the right one
viewer.py             a page that shows scan and organs without a network; page/ has what it is made from
preview.py            a picture; planes.py chooses what it shows, outlines.py draws around organs

To add an output, write a module with a class that satisfies `Result`, and give it a row in `RESULTS`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from ..errors import InputError, ResultError
from ..ownership import mark_in
from ..segmentation import Segmentation
from ..volumes.gzip_file import plain_head
from ..volumes.nifti import EXTENSIONS
from ..volumes.walk import first_bytes
from .result import Result, beside, each_by_itself

__all__ = [
    "BESIDE",
    "DEFAULT_RESULTS",
    "RESULTS",
    "Result",
    "finish_all",
    "left_behind",
    "make_results",
    "marks_of",
    "write_all",
]

# Name of an output -> its module and class; modules are imported when they are asked for, as are their libraries.
RESULTS: dict[str, tuple[str, str]] = {
    "nifti": ("nifti_mask", "NiftiMask"),
    "nifti-named": ("named_mask", "NamedMask"),
    "dicom-seg": ("dicom_seg", "DicomSeg"),
    "rtstruct": ("rtstruct", "RtStruct"),
    "dicom-sr": ("structured_report", "StructuredReport"),
    "statistics": ("statistics", "Statistics"),
    "preview": ("preview", "Preview"),
    "viewer": ("viewer", "Viewer"),
}
DEFAULT_RESULTS = ("nifti",)  # the challenge wants the mask alone
# What a case's files are called that are no masks: known here, so that nothing is imported to look for them.
BESIDE = (".statistics.json", ".preview.png", ".viewer.html", ".seg.dcm", ".rtstruct.dcm", ".sr.dcm")


def make_results(names: Sequence[str] = DEFAULT_RESULTS, **options: Any) -> dict[str, Result]:  # noqa: ANN401
    """The outputs of these names, each once, and before each the outputs that it requires.

    Args:
        names: of `RESULTS`.
        options: by name; each output gets those that it takes, see `Result.takes`.

    Raises:
        InputError: there is no such output, its library is not installed, or two outputs write the same file.
    """
    made: dict[str, Result] = {}
    for name in names:
        _make(name, options, made)
    _check_paths(made)
    return made


def _make(name: str, options: Mapping[str, Any], made: dict[str, Result]) -> None:
    """Add an output, and those that it requires, to those made so far."""
    if name in made:
        return
    if name not in RESULTS:
        raise InputError(f"'{name}': no such output; choose from {', '.join(RESULTS)}")
    module, class_name = RESULTS[name]
    try:
        kind: type[Result] = getattr(import_module(f".{module}", __name__), class_name)
    except ImportError as error:
        raise InputError(f"--save {name} needs {error.name}; install hrnet-ocr-abdomen[all]") from error
    for other in kind.requires:
        _make(other, options, made)
    made[name] = kind(**{option: options[option] for option in kind.takes if option in options})


def _check_paths(results: Mapping[str, Result]) -> None:
    """See that every output has files of its own, however a scan is called.

    Raises:
        InputError: two write the same file.
    """
    for extension in (None, *EXTENSIONS):
        _check_distinct((name, str(result.path(pathlib.Path("X"), extension))) for name, result in results.items())
    _check_distinct((name, file) for name, result in results.items() for file in result.folder_files)


def _check_distinct(files: Iterable[tuple[str, str]]) -> None:
    """See that no two outputs write the same file, given the name of an output with each file.

    Raises:
        InputError: two do.
    """
    writers: dict[str, str] = {}
    for name, file in files:
        other = writers.setdefault(file, name)
        if other != name:
            raise InputError(f"--save {other} and --save {name} write the same file; choose one")


def write_all(segmentation: Segmentation, results: Mapping[str, Result], paths: Mapping[str, pathlib.Path]) -> None:
    """Write the outputs of one case, each by itself: one that cannot be written does not stop the others.

    But what would be worthless without another is left out with it, see `Result.refers_to`.

    Args:
        segmentation: of the case.
        results: by name.
        paths: where each goes.

    Raises:
        ResultError: some could not be written; the line names each with its reason, and those that were written.
    """
    written = []

    def write(name: str) -> None:
        for other in results[name].refers_to:
            if other in results and other not in written:
                raise ResultError(f"{paths[name]}: not written, since {paths[other].name}, which it refers to, was not")
        results[name].write(segmentation, paths[name])
        written.append(name)

    try:
        each_by_itself((paths[name], partial(write, name)) for name in results)
    except ResultError as error:
        raise ResultError(f"{error} (written all the same: {', '.join(written)})" if written else str(error)) from error


def marks_of(paths: Iterable[pathlib.Path]) -> dict[pathlib.Path, bytes]:
    """The marks, see ownership.py, of those files that this program wrote."""
    marks = {path: mark_in(plain_head(first_bytes(path)) or b"") for path in paths}
    return {path: mark for path, mark in marks.items() if mark}


def left_behind(
    base: pathlib.Path, written: Collection[pathlib.Path], before: Mapping[pathlib.Path, bytes]
) -> list[str]:
    """A warning, if a case has files of an earlier run that were made from another mask, which was replaced now.

    Args:
        base: see `Result.path`.
        written: the case's outputs.
        before: their marks before they were written.
    """
    masks = {path: mark for path, mark in before.items() if path.name.endswith(EXTENSIONS)}
    if marks_of(masks) == masks:
        return []
    others = {beside(base, extension) for extension in BESIDE} - {*written}
    names = ", ".join(sorted(path.name for path in marks_of(others)))
    return [f"{names}: of an earlier run, which had another mask; save that again, or delete it"] if names else []


def finish_all(results: Mapping[str, Result], output: pathlib.Path) -> None:
    """Write what belongs to the whole folder of outputs, each output by itself.

    Raises:
        ResultError: some could not be written; the line names each with its reason.
    """
    each_by_itself((output, partial(result.finish, output)) for result in results.values())
