"""python -m training: train a model."""

from __future__ import annotations

import importlib
import math
import os
import pathlib
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

import click
import torch
import torch.distributed as dist

from app.checkpoint import WEIGHTS_DIR
from app.errors import CheckpointError
from training.cache import CachedCase, DataError, find_pairs, load_cases
from training.engine import Run
from training.export import convert as convert_model
from training.export import export as write_model
from training.folds import FOLDS
from training.recipes import Recipe
from training.sampling import SliceSampler
from training.state import TrainingError

RANK_SEED = 1_000_003  # sets the processes' random batches apart
STOPPED = 128 + signal.SIGTERM  # the exit status of a run that SIGTERM ended early, as a shell has it

FOLDER = click.Path(path_type=pathlib.Path)
DATA = click.option("--data", "folders", multiple=True, required=True, type=FOLDER)
HOLD_OUT = click.option("--hold-out", multiple=True, metavar="CASE", help="Never train on this case; validate on it.")
FOLD = click.option("--fold", type=click.IntRange(0, len(FOLDS) - 1), help="Hold out this fold of BTCV's cases.")
CACHE = click.option("--cache", type=FOLDER, default=pathlib.Path("cache"))
DEVICE = click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")


@click.group()
def main() -> None:
    """Train the segmentation models."""


@main.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.argument("run_dir", type=FOLDER)
@DATA
@click.option(
    "--sampling-weight",
    "sampling_weights",
    multiple=True,
    metavar="PREFIX=WEIGHT",
    help="How often cases whose names begin so are drawn, relative to the others' 1.",
)
@click.option(
    "--separate-slices",
    multiple=True,
    metavar="PREFIX",
    help="Cases whose names begin so are no volumes: their slices are not neighbours of each other.",
)
@HOLD_OUT
@FOLD
@click.option("--minutes", type=float, help="Train this long instead of the recipe's steps.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Crops per step instead of the recipe's; the learning rate follows."
)
@click.option(
    "--validate-minutes",
    "validate_minutes",
    type=float,
    default=15.0,
    help="Between two validations on the held-out cases; 0 for none.",
)
@click.option(
    "--keep-minutes",
    "keep_minutes",
    type=float,
    default=0.0,
    help="Keep the averaged weights of every so many minutes, in RUN_DIR/minute-*; 0 for none.",
)
@click.option("--start-from", "start", metavar="RUN_DIR|MODEL", help="Whose weights to begin with.")
@CACHE
@DEVICE
def train(
    recipe_name: str,
    run_dir: pathlib.Path,
    folders: tuple[pathlib.Path, ...],
    sampling_weights: tuple[str, ...],
    separate_slices: tuple[str, ...],
    hold_out: tuple[str, ...],
    fold: int | None,
    minutes: float | None,
    batch: int | None,
    validate_minutes: float,
    keep_minutes: float,
    start: str | None,
    cache: pathlib.Path,
    device: str,
) -> None:
    """Train RECIPE, one of training/recipes or a file.py of your own, in RUN_DIR; or go on with the run that is there.

    With several GPUs or machines: torchrun --nproc-per-node=N -m training train ...; the recipe's batch is divided.
    """
    recipe = find_recipe(recipe_name)
    if batch:
        recipe = with_batch(recipe, batch)
    world, rank = join_processes(device)
    weight_of = [read_sampling_weight(entry) for entry in sampling_weights]
    try:
        if rank:
            dist.barrier()  # the first process writes the cache
        cases = load_cases(folders, cache, recipe)
        if world > 1 and not rank:
            dist.barrier()
        cases = [replace(case, spacing_z_mm=None) if case.name.startswith(separate_slices) else case for case in cases]
        training, held_out = split(cases, hold_out, fold)
        weights = [next((w for prefix, w in weight_of if case.name.startswith(prefix)), 1.0) for case in training]
        if recipe.epochs:
            slices = sum(len(case.images) for case in training)
            recipe = replace(recipe, steps=recipe.epochs * math.ceil(slices / recipe.batch))
        run = Run(run_dir, recipe, torch.device(device))
        run.resume()
        if start and not run.progress.step:
            run.start_from(start)
        share = replace(recipe, batch=max(1, recipe.batch // world))
        seed = recipe.seed + run.progress.step + rank * RANK_SEED
        sampler = SliceSampler(training, weights, share, seed, run.device)
        torch.backends.cudnn.benchmark = True  # every batch has the same size
        is_over = run.train(sampler, held_out, minutes and minutes * 60, validate_minutes * 60, keep_minutes * 60)
    except (DataError, TrainingError) as error:
        sys.exit(f"error: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if not is_over:
        sys.exit(STOPPED)


def read_sampling_weight(entry: str) -> tuple[str, float]:
    """PREFIX=WEIGHT -> both."""
    prefix, _, weight = entry.partition("=")
    try:
        return prefix, float(weight)
    except ValueError as error:
        raise click.UsageError(f"--sampling-weight {entry}: expected PREFIX=WEIGHT, such as btcv=2") from error


def split(
    cases: Sequence[CachedCase], hold_out: Sequence[str], fold: int | None
) -> tuple[list[CachedCase], list[CachedCase]]:
    """The cases to train on, and those held out by name or by fold.

    Raises:
        DataError: a held-out case is not there, or nothing is left to train on.
    """
    names = {*hold_out, *(FOLDS[fold] if fold is not None else ())}
    missing = names - {case.name for case in cases}
    if missing:
        raise DataError(f"held-out case {min(missing)} is in none of the data folders")
    training = [case for case in cases if case.name not in names]
    if not training:
        raise DataError("every case is held out, none is left to train on; hold out fewer")
    return training, [case for case in cases if case.name in names]


def find_recipe(name: str) -> Recipe:
    """The RECIPE of a module in training/recipes, or of a Python file."""
    if name.endswith(".py"):
        own: Recipe = runpy.run_path(name)["RECIPE"]
        return own
    known = sorted(path.stem for path in pathlib.Path(__file__).with_name("recipes").glob("[a-z]*.py"))
    if name not in known:
        raise click.UsageError(f"no recipe '{name}'; there are {', '.join(known)}, or give a file.py with a RECIPE")
    bundled: Recipe = importlib.import_module(f"training.recipes.{name}").RECIPE
    return bundled


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with so many crops per step, and a learning rate that changes with their root, as Adam's steps need.

    Source: Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022.
    """
    return replace(recipe, batch=batch, learning_rate=recipe.learning_rate * math.sqrt(batch / recipe.batch))


def join_processes(device: str) -> tuple[int, int]:
    """Join the processes that torchrun started, if it did; how many there are, and which one this is."""
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if world > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return world, rank


@main.command()
@click.argument("model")
@click.option("--recipe", "recipe_name", required=True, help="Whose network is wanted.")
@click.option("--to", "run_dir", type=FOLDER, required=True, metavar="RUN_DIR", help="Gets the run to go on with.")
def grow(model: str, recipe_name: str, run_dir: pathlib.Path) -> None:
    """Begin a run with the bundled MODEL, grown into a wider network that computes the same."""
    run = Run(run_dir, find_recipe(recipe_name), torch.device("cpu"))
    try:
        if run.checkpoint.exists():
            raise TrainingError(f"{run.checkpoint}: there is a run already; choose another folder")
        run.grow_from(model)
    except (CheckpointError, TrainingError) as error:
        sys.exit(f"error: {error}")
    run.save()


@main.command()
@click.argument("run_dir", type=FOLDER)
@click.option("--name", required=True, help="Of the model: NAME.safetensors.")
@click.option("--version", required=True, help="Of the weights.")
@click.option("--trained-on", required=True, help="The training data, in words; travels with the weights.")
@click.option("--average-with", multiple=True, metavar="RUN_DIR|MODEL", help="Also take the mean with these weights.")
@click.option("--to", "folder", type=FOLDER, default=WEIGHTS_DIR, show_default="weights/")
def export(
    run_dir: pathlib.Path, name: str, version: str, trained_on: str, average_with: tuple[str, ...], folder: pathlib.Path
) -> None:
    """Turn the run in RUN_DIR into weights that the container uses."""
    try:
        click.echo(write_model(run_dir, name, version, trained_on, folder, average_with))
    except (CheckpointError, TrainingError) as error:
        sys.exit(f"error: {error}")


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
@click.option("--to", "folder", type=FOLDER, default=WEIGHTS_DIR, show_default="weights/")
def convert(files: tuple[pathlib.Path, ...], folder: pathlib.Path) -> None:
    """Write a model of before version 0.7, in one file or in shards, in today's format, with weights in 8 bits."""
    try:
        click.echo(convert_model(files, folder))
    except CheckpointError as error:
        sys.exit(f"error: {error}")


@main.command()
@click.argument("out", type=FOLDER)
@DATA
@HOLD_OUT
@FOLD
@click.option("--minutes", type=float, default=5.0, show_default=True, help="Of training, for every network.")
@CACHE
@DEVICE
def compare(
    out: pathlib.Path,
    folders: tuple[pathlib.Path, ...],
    hold_out: tuple[str, ...],
    fold: int | None,
    minutes: float,
    cache: pathlib.Path,
    device: str,
) -> None:
    """Train the paper's other networks and its own for the same time; score them on the held-out cases."""
    from training import compare as comparison  # what it needs is not needed to train

    try:
        training, held_out = split(load_cases(folders, cache, comparison.BASE), hold_out, fold)
        names = {case.name for case in held_out}
        pairs = [pair for folder in folders for pair in find_pairs(folder) if pair[0] in names]
        rows = comparison.compare(out, training, pairs, minutes * 60, torch.device(device))
    except (DataError, TrainingError) as error:
        sys.exit(f"error: {error}")
    (out / "compare.md").write_text(comparison.table(rows) + "\n")
    click.echo(comparison.table(rows))


if __name__ == "__main__":
    main()
