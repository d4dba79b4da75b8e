"""The command line: options, exit codes, logging, signals."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import click

from . import __version__
from .cases import Case, CaseQueue, check_output, find_cases
from .errors import AppError, InputError
from .host import seconds_since_process_start
from .results import DEFAULT_RESULTS, RESULTS, make_results
from .volumes import FindOptions, NameBy, unpacked

_log = logging.getLogger(__package__)

DONE, SOME_FAILED = 0, 1  # an error that ends the run has an exit status of its own, see errors.py


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="INPUT", type=click.Path(path_type=pathlib.Path))
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=pathlib.Path))
@click.option("--model", help="Bundled model; default: paper where it is bundled and a GPU is there, else fast.")
@click.option("--weights", type=click.Path(path_type=pathlib.Path), help="A weights file of your own instead.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), help="Slices per batch; default: what free memory allows.")
@click.option("--no-postprocess", is_flag=True, help="Keep every component, not only each organ's largest.")
@click.option("--skip-existing", is_flag=True, help="Leave cases alone whose mask is already there.")
@click.option(
    "--save",
    type=click.Choice(list(RESULTS)),
    multiple=True,
    default=DEFAULT_RESULTS,
    show_default=True,
    help="What to write; may be given several times.",
)
@click.option("--seg-type", type=click.Choice(["binary", "labelmap"]), default="binary", show_default=True)
@click.option("--recursive", is_flag=True, help="Look for NIfTI in subfolders too, and mirror them in OUTPUT.")
@click.option(
    "--name-by",
    type=click.Choice(list(get_args(NameBy))),
    default="number",
    show_default=True,
    help="What DICOM series are called by.",
)
@click.option("--resample-gaps", is_flag=True, help="Interpolate slices that are missing from a DICOM series.")
@click.option("--list-series", is_flag=True, help="Say what INPUT holds and what would be done, and do nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Say more, with the traceback of an unexpected error.")
@click.version_option(__version__, prog_name="app")
def main(
    source: pathlib.Path,
    output: pathlib.Path,
    model: str | None,
    weights: pathlib.Path | None,
    device: str,
    batch_size: int | None,
    no_postprocess: bool,
    skip_existing: bool,
    save: tuple[str, ...],
    seg_type: str,
    recursive: bool,
    name_by: NameBy,
    resample_gaps: bool,
    list_series: bool,
    verbose: bool,
) -> None:
    """Segment liver, kidneys, spleen and pancreas in the CT scans of INPUT.

    INPUT is a .nii.gz file, a folder of them, any tree of DICOM files, or a .zip or .tar.gz of one of these.

    Masks go to the folder OUTPUT under the scans' names without _0000, with one line each in run_log.jsonl.
    Labels: 0 background, 1 liver, 2 kidneys, 3 spleen, 4 pancreas.

    Exit status: 0 all done, 1 some case failed, 2 usage.
    """
    _open_standard_streams()
    _set_up_logging(verbose)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    if model and weights:
        raise click.UsageError("--model and --weights exclude each other")
    options = FindOptions(recursive, name_by, resample_gaps, _show_headers if sys.stderr.isatty() else lambda *_: None)
    try:
        with unpacked(source) as folder:
            results = make_results(save, seg_type)
            cases = find_cases(folder, output, results, options)
            if list_series:
                _list(cases)
                return
            if all(case.scan.not_ct for case in cases):
                reasons = "; ".join(sorted({str(case.scan.not_ct) for case in cases})[:3])
                raise InputError(f"{source}: no CT to segment ({reasons}); --list-series shows what there is")
            check_output(output)
            with contextlib.closing(CaseQueue(cases, skip_existing)) as queue:  # decodes the first scan from now on
                # Imported here, because this imports torch: usage errors and --help come at once.
                from .inference.predictor import limit_threads
                from .run import FolderRun
                from .segmenter import Segmenter

                limit_threads()
                segmenter = Segmenter.load(weights or model, device, batch_size, postprocess=not no_postprocess)
                run = FolderRun(segmenter, output, seconds_since_process_start())
                if sys.stderr.isatty():
                    run.progress = _progress_bar
                failed = run.predict(queue)
                for result in results.values():
                    result.finish(output)
                sys.exit(SOME_FAILED if failed else DONE)
    except AppError as error:
        _log.error("%s", error)
        sys.exit(error.exit_code)


def _list(cases: Sequence[Case]) -> None:
    for case in cases:
        click.echo(f"{case.name}  {case.scan.path}  {case.problem or case.scan.not_ct or 'to be segmented'}")


def _show_headers(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        click.echo(f"\rDICOM headers: {done} of {total}", nl=done == total, err=True)


def _open_standard_streams() -> None:
    """Open what the caller closed (`2>&-`) onto nothing: a mask must not become file descriptor 2."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 (for the process's life)


def _set_up_logging(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    _log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _terminate(number: int, _frame: object) -> None:
    """Unwind the stack, so that no partial file stays behind; a container's first process ignores SIGTERM otherwise."""
    sys.exit(128 + number)


@contextlib.contextmanager
def _progress_bar(label: str, slices: int) -> Iterator[Callable[[int], None]]:
    with click.progressbar(length=slices, label=label, file=sys.stderr) as bar:
        yield bar.update
