"""The command line: options, and what each command does with them."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from . import quick_imports
from .case_queue import CaseQueue
from .cases import Case, check_output, check_outputs
from .errors import ResultError
from .host import seconds_since_process_start
from .options import Command, ModelChoice, Request, from_input, of_machines, options_of_input, options_of_model
from .organs import Organ
from .process import set_up
from .results import RESULTS, Result, finish_all, make_results
from .run_log import RUN_LOG
from .shards import Shard, merge_logs
from .version import __version__
from .volumes import NotCt, Ready
from .whole_file import printable
from .work import DONE, Resume, RunLog, exit_status, settle

_log = logging.getLogger(__package__)


class Program(Command):
    """The main command, which is called without a name (INPUT OUTPUT), and named commands beside it.

    A click group would require a name first, and list its commands instead of these options. A file or folder that has
    the name of a command is INPUT, like any other path.

    Attributes:
        commands: by name.
    """

    commands: dict[str, click.Command]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (click's own)
        super().__init__(*args, **kwargs)
        self.commands = {}

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401
    ) -> click.Context:
        """Parse the arguments by the command that they name, or by this one."""
        command = self.commands.get(args[0]) if args and not os.path.lexists(args[0]) else None
        if command is None:
            return super().make_context(info_name, args, parent, **extra)
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command whose arguments were parsed."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the other commands below the options."""
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            rows = [(f"{name} OUTPUT", command.get_short_help_str(200)) for name, command in self.commands.items()]
            formatter.write_dl(rows)


HELP = f"""Segment abdominal organs in the CT scans of INPUT.

INPUT is a NIfTI file (.nii.gz, .nii), a folder of them, any tree of DICOM files, or a .zip, .tar or .tar.gz of one.

Masks are written to the folder OUTPUT under the scans' names without _0000, and run_log.jsonl there gets a line
per scan. Labels: {", ".join(f"{organ:d} {organ.key}" for organ in Organ)}; a model may have fewer.

Exit status: 0 all done, 1 some case failed, 2 wrong usage.
"""


@click.command(cls=Program, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@options_of_input
@from_input("--list-series", is_flag=True, help="Dry run: list what INPUT holds and what would be done.")
@options_of_model
@of_machines(
    "--shard", metavar="I/N", help="Do the I-th of N parts; default: what a SLURM, AWS Batch or Kubernetes array says."
)
@click.version_option(__version__, prog_name="app")
def main(shard: str | None, list_series: bool, verbose: bool, **options: Any) -> None:  # noqa: ANN401 (see Request, ModelChoice)
    """Segment scans, as `HELP` says."""
    set_up(verbose)
    request, choice = Request.taken_from(options), ModelChoice.taken_from(options)

    def command() -> int:
        part = Shard.parse(shard) if shard else Shard.from_environment()
        with request.cases(needs_ct=not list_series) as (cases, results):
            cases = _part_of(cases, part)
            return _list(cases, request.resume) if list_series else _segment(request, choice, cases, results, part)

    sys.exit(exit_status(command))


def _list(cases: list[Case], resume: Resume) -> int:
    """Print what would be done with every case."""
    for case in cases:
        click.echo(printable(f"{case.name}  {case.scan.path}  {_prospect(case, resume)}"))
    return DONE


def _prospect(case: Case, resume: Resume) -> str:
    """What would be done with a case, and why not more."""
    if not isinstance(case.scan.state, Ready):
        return case.scan.state.reason
    if record := settle(case, resume):
        return f"skipped, {record.error or 'its outputs exist'}"
    try:
        check_outputs(case)
    except ResultError as error:
        return str(error)
    return "to be segmented"


def _part_of(cases: list[Case], part: Shard) -> list[Case]:
    """Pick the cases of a shard. A single scan is not split: an array over scans has done that already.

    A shard that nobody asked for is a warning where it leaves out scans: a task may have a folder of its own.
    """
    scans = sum(not isinstance(case.scan.state, NotCt) for case in cases)
    if part.count == 1 and not part.was_asked_for and scans > 1:
        _log.warning(
            "%s is set: this task of an array does all %d cases; --shard I/N gives each a part, --shard 1/1 is for all",
            part.source,
            len(cases),
        )
    if part.count == 1 or (scans <= 1 and not part.was_asked_for):
        return cases
    mine = part.pick(cases)
    said = f"shard {part.index} of {part.count} ({part.source}): {len(mine)} of {len(cases)} cases"
    if part.was_asked_for or len(mine) == len(cases):
        _log.info(said)
    else:
        _log.warning("%s; the others are left to the other tasks, --shard 1/1 does all here", said)
    return mine


def _segment(request: Request, choice: ModelChoice, cases: list[Case], results: dict[str, Result], part: Shard) -> int:
    """Segment the cases and return the exit status."""
    check_output(request.output, cases)
    if not cases:
        return DONE  # more shards than cases
    # The queue decodes the first scan while the engine's library is imported. --help and usage errors import neither.
    with contextlib.closing(CaseQueue(cases, request.resume)) as queue:
        with quick_imports.without_collection():
            from .run import CaseRunner, Run

            segmenter = choice.load()
        log = RunLog(request.output, part.log_name)
        with contextlib.closing(CaseRunner(segmenter, seconds_since_process_start())) as runner:
            run = Run(runner, log)
            if sys.stderr.isatty():
                run.progress = _progress_bar
            run.do(queue)
        finish_all(results, request.output)
        return log.exit_status


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--save", type=click.Choice(list(RESULTS)), multiple=True, help="Rebuild this output's table or index.")
def merge(output: pathlib.Path, save: tuple[str, ...]) -> None:
    """Merge the logs of all shards in the folder OUTPUT into one run_log.jsonl."""
    set_up(verbose=False)

    def command() -> int:
        count = merge_logs(output)
        finish_all(make_results(save), output)
        click.echo(f"{output / RUN_LOG}: {count} cases")
        return DONE

    sys.exit(exit_status(command))


main.commands["merge-logs"] = merge


@contextlib.contextmanager
def _progress_bar(label: str, slices: int) -> Iterator[Callable[[int], None]]:
    with click.progressbar(length=slices, label=label, file=sys.stderr) as bar:
        yield bar.update
