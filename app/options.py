"""The options that the command line and the cluster share: what to segment, what to write, which model, how."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import click

from .cases import Case, find_cases, read_list, require_ct
from .engines import DEVICES, ENGINES
from .quick_imports import without
from .results import DEFAULT_RESULTS, RESULTS, Result, make_results
from .volumes import FindOptions, NameBy, clear_left_behind, is_archive, unpacked
from .work import Resume

if TYPE_CHECKING:
    from .segmenter import Segmenter


class Option(click.Option):
    """An option that `--help` lists under a heading.

    Attributes:
        heading: of the options that it belongs to.
    """

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:  # noqa: ANN401 (click's own)
        super().__init__(*args, **kwargs)
        self.heading = heading


class GivenPath(click.Path):
    """A path, but not an empty one: an unset variable of a script would name the folder that it runs in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """See click; what is given on the command line is text."""
        if value == "":
            self.fail("an empty path; is a variable unset?", param, ctx)
        return super().convert(value, param, ctx)


MOST_SHOWN = 4  # paths in a message
PATH = GivenPath(path_type=pathlib.Path)


class Command(click.Command):
    """A command that lists its options under their headings, in the order of their first option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section per heading; options without one come last."""
        by_heading: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                by_heading.setdefault(getattr(param, "heading", OTHER), []).append(record)
        for heading in sorted(by_heading, key=OTHER.__eq__):
            with formatter.section(heading):
                formatter.write_dl(by_heading[heading])


OTHER = "Other options"
from_input = partial(click.option, cls=Option, heading="Input")
to_output = partial(click.option, cls=Option, heading="Output")
of_model = partial(click.option, cls=Option, heading="Model")
of_machines = partial(click.option, cls=Option, heading="Many machines")


def options_of_input(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments and options that say which scans, and what is written of them."""
    for add in reversed(
        (
            click.argument("paths", metavar="INPUT OUTPUT", nargs=-1, type=PATH),
            from_input(
                "--list",
                "list_file",
                metavar="FILE",
                type=PATH,
                help="Read the scans' paths from FILE, one per line, instead of INPUT.",
            ),
            from_input("--recursive", is_flag=True, help="Look for NIfTI in subfolders too; OUTPUT mirrors them."),
            from_input(
                "--name-by",
                type=click.Choice(list(get_args(NameBy))),
                default="number",
                show_default=True,
                help="How to name the cases of DICOM series.",
            ),
            from_input("--resample-gaps", is_flag=True, help="Interpolate the missing slices of a DICOM series."),
            to_output(
                "--save",
                type=click.Choice(list(RESULTS)),
                multiple=True,
                default=DEFAULT_RESULTS,
                show_default=True,
                help="What to write; may be given several times.",
            ),
            to_output(
                "--seg-type",
                type=click.Choice(["binary", "labelmap"]),
                default="binary",
                show_default=True,
                help="Type of the DICOM segmentation, with --save dicom-seg.",
            ),
            to_output("--skip-existing", is_flag=True, help="Skip cases that are done, or failed in an earlier run."),
            to_output("--retry-failed", is_flag=True, help="Like --skip-existing, but retry failed cases."),
        )
    ):
        command = add(command)
    return command


def options_of_model(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how scans are segmented."""
    for add in reversed(
        (
            of_model("--model", metavar="NAME", help="Bundled model: fast (default on a CPU) or paper (on a GPU)."),
            of_model(
                "--weights",
                metavar="FILE",
                type=PATH,
                help="Your own weights file instead of a bundled model.",
            ),
            of_model(
                "--engine",
                type=click.Choice(["auto", *ENGINES]),
                default="auto",
                show_default=True,
                help="Library that runs the network; auto: torch on a GPU, on a CPU OpenVINO if installed, else torch.",
            ),
            of_model(
                "--device",
                type=click.Choice(DEVICES),
                default="auto",
                show_default=True,
                help="Where to run it; auto: an NVIDIA GPU if it can be used, else the CPU.",
            ),
            of_model(
                "--batch-size",
                metavar="N",
                type=click.IntRange(min=1),
                help="Slices in the network at a time; default: what a GPU's memory or a CPU's threads allow.",
            ),
            of_model("--no-postprocess", is_flag=True, help="Keep all components, not only each organ's largest."),
            click.option("-v", "--verbose", is_flag=True, help="Log more, with the traceback of unexpected errors."),
        )
    ):
        command = add(command)
    return command


@dataclass
class Request:
    """Which scans to segment and what to write; fields are named after the options (see `options_of_input`)."""

    paths: tuple[pathlib.Path, ...]
    list_file: pathlib.Path | None
    save: tuple[str, ...]
    seg_type: str
    recursive: bool
    name_by: NameBy
    resample_gaps: bool
    skip_existing: bool
    retry_failed: bool

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Request:
        """Take the fields out of a command's options.

        Raises:
            click.UsageError: there are too few or too many arguments.
        """
        request = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        expected = 1 if request.list_file else 2
        if len(request.paths) != expected:
            wanted = "OUTPUT alone with --list" if expected == 1 else "INPUT and OUTPUT"
            few = request.paths[:MOST_SHOWN]
            got = " ".join([*map(str, few), *["..."] * (len(request.paths) > len(few))]) or "neither"
            several = "; for several scans give their folder, or --list FILE" if len(request.paths) > expected else ""
            raise click.UsageError(f"expected {wanted}, got {got}{several}")
        return request

    @property
    def output(self) -> pathlib.Path:
        """OUTPUT."""
        return self.paths[-1]

    @property
    def resume(self) -> Resume:
        """What to do about cases that an earlier run dealt with."""
        return Resume(self.skip_existing or self.retry_failed, self.retry_failed)

    @contextlib.contextmanager
    def cases(self, needs_ct: bool = True) -> Iterator[tuple[list[Case], dict[str, Result]]]:
        """Find the cases and the outputs to write; an archive stays unpacked until the block ends.

        Args:
            needs_ct: at least one must be a CT.

        Raises:
            InputError: see `read_list`, `unpacked`, `make_results`, `find_cases` and `require_ct`.
        """
        on_header = _show_headers if sys.stderr.isatty() else lambda *_: None
        options = FindOptions(self.recursive, self.name_by, self.resample_gaps, on_header=on_header)
        results = make_results(self.save, seg_type=self.seg_type)
        clear_left_behind()
        named = self.list_file or self.paths[0]
        with contextlib.ExitStack() as stack:
            sources = read_list(named) if self.list_file else [stack.enter_context(unpacked(named))]
            if not self.list_file and is_archive(named):
                options = replace(options, recursive=True)  # all of it was given
            cases = find_cases(sources, self.output, results, options)
            if needs_ct:
                require_ct(cases, named)
            yield cases, results


@dataclass
class ModelChoice:
    """Which model to run, and how; fields are named after the options (see `options_of_model`)."""

    model: str | None
    weights: pathlib.Path | None
    engine: str
    device: str
    batch_size: int | None
    no_postprocess: bool

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> ModelChoice:
        """Take the fields out of a command's options.

        Raises:
            click.UsageError: two of them cannot be given together.
        """
        choice = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        if choice.model and choice.weights:
            raise click.UsageError("got both --model and --weights; give one of them")
        return choice

    def load(self) -> Segmenter:
        """Load it; imports the engine's library.

        Raises:
            AppError: see `Segmenter.load`.
        """
        from .segmenter import Segmenter

        with without("openvino.tools"):  # converters of other programs' models, and the telemetry that they send
            return Segmenter.load(
                self.weights or self.model,
                self.device,
                self.batch_size,
                postprocess=not self.no_postprocess,
                engine=self.engine,
            )


def _show_headers(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        click.echo(f"\rDICOM headers: {done} of {total}", nl=done == total, err=True)
