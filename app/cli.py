"""The command line: options, exit codes, logging, signals."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from . import quick_imports  # before what imports nibabel
from .cases import Case, CaseQueue, check_output
from .errors import AppError, InputError
from .host import seconds_since_process_start
from .options import ModelChoice, Request, options_of_input, options_of_model
from .results import RESULTS, Result, make_results
from .run_log import RUN_LOG
from .shards import Shard, merge_logs
from .version import __version__

_log = logging.getLogger(__package__)

DONE, SOME_FAILED = 0, 1  # an error that ends the run has an exit status of its own, see errors.py


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options_of_input
@click.option("--shard", metavar="I/N", help="Do the I-th of N parts; default: what a SLURM array or Kubernetes says.")
@click.option("--list-series", is_flag=True, help="Say what INPUT holds and what would be done, and do nothing.")
@options_of_model
@click.version_option(__version__, prog_name="app")
def main(shard: str | None, list_series: bool, verbose: bool, **options: Any) -> None:  # noqa: ANN401 (see Request, ModelChoice)
    """Segment liver, kidneys, spleen and pancreas in the CT scans of INPUT.

    INPUT is a .nii.gz file, a folder of them, any tree of DICOM files, or a .zip or .tar.gz of one of these.

    Masks go to the folder OUTPUT under the scans' names without _0000, with one line each in run_log.jsonl.
    Labels: 0 background, 1 liver, 2 kidneys, 3 spleen, 4 pancreas.

    Exit status: 0 all done, 1 some case failed, 2 usage.
    """
    set_up(verbose)
    request, choice = Request.taken_from(options), ModelChoice.taken_from(options)
    try:
        part = Shard.parse(shard) if shard else Shard.from_environment()
        with request.cases() as (cases, results):
            if not list_series and all(case.scan.not_ct for case in cases):
                reasons = "; ".join(sorted({str(case.scan.not_ct) for case in cases})[:3])
                source = request.list_file or request.paths[0]
                raise InputError(f"{source}: no CT to segment ({reasons}); --list-series shows what there is")
            cases = _part_of(cases, part)
            if list_series:
                for case in cases:
                    click.echo(
                        f"{case.name}  {case.scan.path}  {case.problem or case.scan.not_ct or 'to be segmented'}"
                    )
                return
            sys.exit(_segment(request, choice, cases, results, part))
    except AppError as error:
        _log.error("%s", error)
        sys.exit(error.exit_code)


def _part_of(cases: list[Case], part: Shard) -> list[Case]:
    """A shard's cases. One scan alone is no work to be split: whoever starts an array over scans has done that."""
    if part.count == 1 or (len(cases) == 1 and part.source != "--shard"):
        return cases
    mine = part.pick(cases)
    _log.info("shard %d of %d (%s): %d of %d cases", part.index, part.count, part.source, len(mine), len(cases))
    return mine


def _segment(request: Request, choice: ModelChoice, cases: list[Case], results: dict[str, Result], part: Shard) -> int:
    """Do the cases; the exit status."""
    check_output(request.output)
    if not cases:
        return DONE  # more shards than cases
    # It decodes the first scan from now on, while torch is imported. Usage errors and --help came without torch.
    with contextlib.closing(CaseQueue(cases, request.skip_existing, request.retry_failed)) as queue:
        with quick_imports.without_collection():
            from .run import FolderRun

            segmenter = choice.load()
        run = FolderRun(segmenter, request.output, part.log_name, seconds_since_process_start())
        if sys.stderr.isatty():
            run.progress = _progress_bar
        failed = run.predict(queue)
        for result in results.values():
            result.finish(request.output)
        return SOME_FAILED if failed else DONE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--save", type=click.Choice(list(RESULTS)), multiple=True, help="Make this one's table or index anew.")
def merge(output: pathlib.Path, save: tuple[str, ...]) -> None:
    """Make one run_log.jsonl of the logs of all shards in the folder OUTPUT."""
    set_up(verbose=False)
    try:
        count = merge_logs(output)
        for result in make_results(save).values() if save else ():
            result.finish(output)
    except AppError as error:
        _log.error("%s", error)
        sys.exit(error.exit_code)
    click.echo(f"{output / RUN_LOG}: {count} cases")


def entry() -> None:
    """What `hrnet-ocr-abdomen` and `python -m app` run."""
    try:
        if sys.argv[1:2] == ["merge-logs"]:
            merge(sys.argv[2:], prog_name=f"{sys.argv[0]} merge-logs")
        main()
    except SystemExit as end:
        _leave(end.code)
        raise


def _leave(status: object) -> None:
    """End the process here, where all is written and closed, and spare it the dismantling of every imported library.

    Returns where that might lose something: output that cannot be written, or a message in place of a status.
    """
    if status is not None and not isinstance(status, int):
        return
    try:
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the caller closed it
            stream.flush()
    except (OSError, ValueError):
        return
    os._exit(status or DONE)


def set_up(verbose: bool) -> None:
    """Streams, logging and signals of a process that segments."""
    _open_standard_streams()
    _set_up_logging(verbose)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)


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
