"""python -m training: train a model."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import math
import os
import pathlib
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import click
import torch
import torch.distributed as dist

from app.checkpoint import WEIGHTS_DIR
from app.errors import AppError
from app.options import PATH
from app.process import full_disk_in_one_line
from training.cache import DataError
from training.data import Cases, DataOptions
from training.engine import Run, Timing
from training.export import convert as convert_model
from training.export import export as write_model
from training.folds import FOLDS
from training.recipes import Recipe
from training.sampling import SliceSampler
from training.state import RunState
from training.weights import TrainingError

RANK_SEED = 1_000_003  # sets the processes' random batches apart

FOLDER = PATH
MINUTES = click.FloatRange(min=0, min_open=True)
Command = Callable[..., None]


def read_sampling_weights(
    _context: click.Context, _parameter: click.Parameter, entries: Sequence[str]
) -> dict[str, float]:
    """PREFIX=WEIGHT, several times -> a mapping; of two weights for one prefix the first counts."""
    weights: dict[str, float] = {}
    for entry in entries:
        prefix, _, weight = entry.partition("=")
        try:
            weights.setdefault(prefix, float(weight))
        except ValueError as error:
            raise click.UsageError(f"--sampling-weight {entry}: expected PREFIX=WEIGHT, such as btcv=2") from error
        if not 0 <= weights[prefix] < math.inf:
            raise click.UsageError(f"--sampling-weight {entry}: expected a weight of 0 or more, such as btcv=2")
    return weights


def read_device(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    """The name of a device, if it is there."""
    kind, _, number = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind, 0)
    if number not in ("", *map(str, range(count))) or not count:
        raise click.UsageError(f"--device {name}: there is no such device; choose cpu, or cuda where there is a GPU")
    return name


def grouped(name: str, kind: type[Any], *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Give a command some of its options as one argument: a dataclass whose fields have the options' names."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**arguments: object) -> None:
            parts = {field.name: arguments.pop(field.name) for field in fields(kind) if field.name in arguments}
            command(**{name: kind(**parts)}, **arguments)

        with_options: Command = called
        for option in reversed(options):
            with_options = option(with_options)
        return with_options

    return decorate


DATA = (
    click.option(
        "--data",
        "folders",
        multiple=True,
        required=True,
        type=FOLDER,
        help="Folder with imagesTr and labelsTr; may be given several times.",
    ),
    click.option(
        "--hold-out",
        multiple=True,
        metavar="CASE",
        help="Never train on this case; validate on it. May be given several times.",
    ),
    click.option("--fold", type=click.IntRange(0, len(FOLDS) - 1), help="Hold out this fold of BTCV's cases."),
    click.option(
        "--cache",
        type=FOLDER,
        default=pathlib.Path("cache"),
        show_default=True,
        help="Folder for the scans as the network sees them.",
    ),
)
DRAWING = (
    click.option(
        "--sampling-weight",
        "sampling_weights",
        multiple=True,
        metavar="PREFIX=WEIGHT",
        callback=read_sampling_weights,
        help="How often cases whose names begin so are drawn, relative to the others' 1.",
    ),
    click.option(
        "--separate-slices",
        multiple=True,
        metavar="PREFIX",
        help="Cases whose names begin so are not volumes: their slices are not neighbours of each other.",
    ),
)
TIMING = (
    click.option("--minutes", type=MINUTES, help="Train this long instead of the recipe's steps."),
    click.option(
        "--validate-minutes",
        type=click.FloatRange(min=0),
        default=15.0,
        show_default=True,
        help="Minutes between two validations on the held-out cases; 0 for none.",
    ),
    click.option(
        "--keep-minutes",
        type=click.FloatRange(min=0),
        default=0.0,
        help="Keep the averaged weights every N minutes, in RUN_DIR/minute-*; 0 for never.",
    ),
)


DEVICE = click.option(
    "--device",
    default="cuda" if torch.cuda.is_available() else "cpu",
    show_default="cuda if it can be used, else cpu",
    callback=read_device,
    help="cpu, cuda or cuda:N.",
)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What goes wrong inside for a reason that we know ends the process with a line on standard error."""
    try:
        yield
    except (DataError, TrainingError, AppError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        reason = f"{error.strerror}; check the folder, its permissions and the disk's free space"
        sys.exit(f"error: {error.filename}: {reason}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train a model and turn it into weights; see docs/TRAINING.md."""


@main.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.argument("run_dir", type=FOLDER)
@grouped("data", DataOptions, *DATA, *DRAWING)
@grouped("timing", Timing, *TIMING)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Crops per step, instead of the recipe's; the learning rate scales with its root.",
)
@click.option("--start-from", "start", metavar="RUN_DIR|MODEL", help="Run or bundled model to start from.")
@DEVICE
def train(
    recipe_name: str,
    run_dir: pathlib.Path,
    data: DataOptions,
    timing: Timing,
    batch: int | None,
    start: str | None,
    device: str,
) -> None:
    """Train RECIPE, one of training/recipes or a file.py of your own, in RUN_DIR; or go on with the run that is there.

    With several GPUs or machines: torchrun --nproc-per-node=N -m training train ...; the recipe's batch is divided.
    """
    recipe = find_recipe(recipe_name)
    if batch:
        recipe = with_batch(recipe, batch)
    with errors_in_one_line(), joined_processes(device) as (world, rank), alone_in(run_dir, rank):
        with first_process_first(rank):  # it writes the cache
            cases = data.load(recipe.model)
        recipe = with_steps(recipe, cases)
        state = RunState(run_dir, recipe, torch.device(device))
        state.resume()
        if start and not state.progress.step:
            state.start_from(start)
        share = replace(recipe, crops=replace(recipe.crops, batch=max(1, recipe.crops.batch // world)))
        seed = recipe.seed + state.progress.step + rank * RANK_SEED
        sampler = SliceSampler(cases.training, cases.weights, share, seed, state.device)
        torch.backends.cudnn.benchmark = True  # every batch has the same size
        stopped_by = Run(state, timing).train(sampler, cases.held_out)
    if stopped_by:
        name, step = signal.Signals(stopped_by).name, state.progress.step
        if state.is_first:
            with contextlib.suppress(OSError):  # the terminal is gone
                click.echo(f"{run_dir}: stopped by {name} at step {step} and saved; the same command goes on", err=True)
        sys.exit(128 + stopped_by)  # as a shell has it


def find_recipe(name: str) -> Recipe:
    """The RECIPE of a module in training/recipes, or of a Python file."""
    if name.endswith(".py"):
        own = runpy.run_path(name).get("RECIPE") if pathlib.Path(name).is_file() else None
        if not isinstance(own, Recipe):
            raise click.UsageError(f"{name}: no such file, or no RECIPE in it; see training/recipes for some")
        return own
    known = sorted(path.stem for path in pathlib.Path(__file__).with_name("recipes").glob("[a-z]*.py"))
    if name not in known:
        raise click.UsageError(f"no recipe '{name}'; there are {', '.join(known)}, or give a file.py with a RECIPE")
    bundled: Recipe = importlib.import_module(f"training.recipes.{name}").RECIPE
    return bundled


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with another batch size, and a learning rate that changes with its square root, as Adam needs.

    Source: Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022.
    """
    rate = recipe.optimiser.learning_rate * math.sqrt(batch / recipe.crops.batch)
    crops, optimiser = replace(recipe.crops, batch=batch), replace(recipe.optimiser, learning_rate=rate)
    return replace(recipe, crops=crops, optimiser=optimiser)


def with_steps(recipe: Recipe, cases: Cases) -> Recipe:
    """The recipe with as many steps as its epochs take, where it counts in epochs."""
    if not recipe.optimiser.epochs:
        return recipe
    slices = sum(len(case.images) for case in cases.training)
    steps = recipe.optimiser.epochs * math.ceil(slices / recipe.crops.batch)
    return replace(recipe, optimiser=replace(recipe.optimiser, steps=steps))


@contextlib.contextmanager
def joined_processes(device: str) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, if it did; how many there are, and which one this is."""
    try:
        world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
        if world > 1:
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the processes of WORLD_SIZE={os.environ['WORLD_SIZE']} cannot be joined ({error}); start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    if world > 1 and device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        yield world, rank
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def alone_in(run_dir: pathlib.Path, rank: int) -> Iterator[None]:
    """Lock a run's folder for the time of the block: two runs in it would overwrite each other's checkpoints.

    The first process does that for all.

    Raises:
        TrainingError: another run has locked it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        if not rank:
            with contextlib.suppress(OSError):  # some network file systems know no locks
                _lock(descriptor, run_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: pathlib.Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TrainingError(f"{run_dir}: another run is training there; wait for its end, or choose another") from error


@contextlib.contextmanager
def first_process_first(rank: int) -> Iterator[None]:
    """The first process does what is inside before the others do it."""
    if rank:
        dist.barrier()
    yield
    if dist.is_initialized() and not rank:
        dist.barrier()


@main.command()
@click.argument("model")
@click.option("--recipe", "recipe_name", required=True, help="Recipe of the wider network.")
@click.option("--to", "run_dir", type=FOLDER, required=True, metavar="RUN_DIR", help="Folder for the new run.")
def grow(model: str, recipe_name: str, run_dir: pathlib.Path) -> None:
    """Begin a run with the bundled MODEL, grown into a wider network that computes the same."""
    recipe = find_recipe(recipe_name)
    with errors_in_one_line():
        state = RunState(run_dir, recipe, torch.device("cpu"))
        if state.checkpoint.exists():
            raise TrainingError(f"{state.checkpoint}: there is a run already; choose another folder")
        state.grow_from(model)
        state.save()


@main.command()
@click.argument("source", metavar="RUN_DIR|MODEL")
@click.option("--name", help="Of the model: NAME.safetensors.")
@click.option("--version", help="Of the weights.")
@click.option("--trained-on", help="The training data, in words; travels with the weights.")
@click.option("--average-with", multiple=True, metavar="RUN_DIR|MODEL", help="Also take the mean with these weights.")
@click.option("--to", "folder", type=FOLDER, default=WEIGHTS_DIR, show_default="weights/", help="Folder for the model.")
@click.option("--onnx", type=FOLDER, metavar="FILE", help="Write the network as ONNX instead; needs no other option.")
def export(
    source: str,
    name: str | None,
    version: str | None,
    trained_on: str | None,
    average_with: tuple[str, ...],
    folder: pathlib.Path,
    onnx: pathlib.Path | None,
) -> None:
    """Turn the run in RUN_DIR into weights that the container uses; with --onnx, a run or a bundled MODEL into ONNX."""
    if onnx:
        if name or version or trained_on or average_with:
            raise click.UsageError("--onnx takes the run or model as it is; export the model first, then that as ONNX")
        from training.onnx_export import export_onnx  # what it needs is not needed to train

        with errors_in_one_line():
            difference = export_onnx(source, onnx)
            click.echo(f"{onnx}: ONNX Runtime's logits differ from torch's by {difference:.0e} at most")
    elif name and version and trained_on:
        with errors_in_one_line():
            click.echo(write_model(pathlib.Path(source), name, version, trained_on, folder, average_with))
    else:
        raise click.UsageError("expected --name, --version and --trained-on, which travel with the weights; or --onnx")


@main.command()
@click.argument("files", nargs=-1, required=True, type=FOLDER)
@click.option("--to", "folder", type=FOLDER, default=WEIGHTS_DIR, show_default="weights/", help="Folder for the model.")
def convert(files: tuple[pathlib.Path, ...], folder: pathlib.Path) -> None:
    """Write a model of before version 0.7, in one file or in shards, in today's format, with weights in 8 bits."""
    with errors_in_one_line():
        click.echo(convert_model(files, folder))


@main.command()
@click.argument("out", type=FOLDER)
@grouped("data", DataOptions, *DATA)
@click.option("--minutes", type=MINUTES, default=5.0, show_default=True, help="Of training, for every network.")
@DEVICE
def compare(out: pathlib.Path, data: DataOptions, minutes: float, device: str) -> None:
    """Train the paper's other networks and its own for the same time; score them on the held-out cases."""
    from training import compare as comparison  # what it needs is not needed to train

    with errors_in_one_line():
        training = data.load(comparison.BASE.model).training
        rows = comparison.compare(out, training, data.held_out_pairs(), minutes, torch.device(device))
    table = comparison.markdown(rows)
    (out / "compare.md").write_text(table + "\n", "utf-8")
    click.echo(table)


if __name__ == "__main__":
    with full_disk_in_one_line():
        main()
