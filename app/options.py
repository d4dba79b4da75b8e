"""The options that say what is segmented and how: what the command line and the cluster's have in common."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_args

import click

from .cases import Case, find_cases, read_list, require_ct
from .engines import ENGINES
from .quick_imports import without
from .results import DEFAULT_RESULTS, RESULTS, Result, make_results
from .volumes import FindOptions, NameBy, clear_left_behind, is_archive, unpacked
from .work import Resume

if TYPE_CHECKING:
    from .segmenter import Segmenter


def options_of_input(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments and options that say which scans, and what is written of them."""
    for add in reversed(
        (
            click.argument("paths", metavar="INPUT OUTPUT", nargs=-1, type=click.Path(path_type=pathlib.Path)),
            click.option(
                "--list",
                "list_file",
                metavar="FILE",
                type=click.Path(path_type=pathlib.Path),
                help="Take the scans named in FILE, one path per line, instead of INPUT.",
            ),
            click.option(
                "--save",
                type=click.Choice(list(RESULTS)),
                multiple=True,
                default=DEFAULT_RESULTS,
                show_default=True,
                help="What to write; may be given several times.",
            ),
            click.option("--seg-type", type=click.Choice(["binary", "labelmap"]), default="binary", show_default=True),
            click.option(
                "--recursive", is_flag=True, help="Look for NIfTI in subfolders too, and mirror them in OUTPUT."
            ),
            click.option(
                "--name-by",
                type=click.Choice(list(get_args(NameBy))),
                default="number",
                show_default=True,
                help="What DICOM series are called by.",
            ),
            click.option("--resample-gaps", is_flag=True, help="Interpolate slices that a DICOM series lacks."),
            click.option("--skip-existing", is_flag=True, help="Skip cases that are done or failed before."),
            click.option("--retry-failed", is_flag=True, help="With --skip-existing: retry failed cases."),
        )
    ):
        command = add(command)
    return command


def options_of_model(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how scans are segmented."""
    for add in reversed(
        (
            click.option("--model", help="Bundled model: fast (default on a CPU) or paper (on a GPU)."),
            click.option(
                "--weights", type=click.Path(path_type=pathlib.Path), help="A weights file of your own instead."
            ),
            click.option(
                "--engine",
                type=click.Choice(["auto", *ENGINES]),
                default="auto",
                show_default=True,
                help="What computes; auto: torch on a GPU, on a CPU OpenVINO if installed, else torch.",
            ),
            click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
            click.option(
                "--batch-size", type=click.IntRange(min=1), help="Slices per batch; default: what memory allows."
            ),
            click.option("--no-postprocess", is_flag=True, help="Keep every component, not only each organ's largest."),
            click.option("-v", "--verbose", is_flag=True, help="Say more, with the traceback of an unexpected error."),
        )
    ):
        command = add(command)
    return command


@dataclass
class Request:
    """Which scans are asked for, and what of them; the names are the options' (see `options_of_input`)."""

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
            click.UsageError: an argument is missing or too much.
        """
        request = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        expected = 1 if request.list_file else 2
        if len(request.paths) != expected:
            raise click.UsageError(f"expected {'OUTPUT alone beside --list' if expected == 1 else 'INPUT and OUTPUT'}")
        return request

    @property
    def output(self) -> pathlib.Path:
        """OUTPUT."""
        return self.paths[-1]

    @property
    def resume(self) -> Resume:
        """What becomes of cases that an earlier run dealt with."""
        return Resume(self.skip_existing, self.retry_failed)

    @contextlib.contextmanager
    def cases(self, needs_ct: bool = True) -> Iterator[tuple[list[Case], dict[str, Result]]]:
        """The cases, and the outputs that are wanted; an archive stays unpacked until the block ends.

        Args:
            needs_ct: at least one must be a CT.

        Raises:
            InputError: see `read_list`, `unpacked`, `make_results`, `find_cases` and `require_ct`.
        """
        on_header = _show_headers if sys.stderr.isatty() else lambda *_: None
        options = FindOptions(self.recursive, self.name_by, self.resample_gaps, on_header=on_header)
        results = make_results(self.save, self.seg_type)
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
    """Which model, and how it is run; the names are the options' (see `options_of_model`)."""

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
            click.UsageError: two of them exclude each other.
        """
        choice = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        if choice.model and choice.weights:
            raise click.UsageError("--model and --weights exclude each other")
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
