"""python -m training: train a model."""

from __future__ import annotations

import importlib
import math
import pathlib
import sys
from dataclasses import replace

import click
import torch

from app.checkpoint import WEIGHTS_DIR
from training.cache import DataError, load_cases
from training.engine import Run, TrainingError
from training.export import export as write_model
from training.sampling import SliceSampler


@click.group()
def main() -> None:
    """Train the segmentation models."""


@main.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.argument("run_dir", type=click.Path(path_type=pathlib.Path))
@click.option("--data", "folders", multiple=True, required=True, type=click.Path(path_type=pathlib.Path))
@click.option(
    "--trust", multiple=True, metavar="PREFIX=WEIGHT", help="How often cases of that name are drawn (else 1)."
)
@click.option("--hold-out", multiple=True, metavar="CASE", help="Never train on this case; check on it.")
@click.option("--minutes", type=float, help="Train this long instead of the recipe's steps.")
@click.option("--check-minutes", type=float, default=15.0, help="Between looks at the held-out cases.")
@click.option("--start", type=click.Path(path_type=pathlib.Path), help="Begin with the weights of the run there.")
@click.option("--cache", type=click.Path(path_type=pathlib.Path), default=pathlib.Path("cache"))
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def train(
    recipe_name: str,
    run_dir: pathlib.Path,
    folders: tuple[pathlib.Path, ...],
    trust: tuple[str, ...],
    hold_out: tuple[str, ...],
    minutes: float | None,
    check_minutes: float,
    start: pathlib.Path | None,
    cache: pathlib.Path,
    device: str,
) -> None:
    """Train RECIPE in RUN_DIR, or go on with the run that is there."""
    recipe = importlib.import_module(f"training.recipes.{recipe_name}").RECIPE
    odds = [(prefix, float(weight)) for prefix, _, weight in (entry.partition("=") for entry in trust)]
    try:
        cases = load_cases(folders, cache, recipe)
        missing = set(hold_out) - {case.name for case in cases}
        if missing:
            raise DataError(f"held-out case {min(missing)} is in none of the data folders")
        training = [case for case in cases if case.name not in hold_out]
        weights = [next((w for prefix, w in odds if case.name.startswith(prefix)), 1.0) for case in training]
        if recipe.epochs:
            slices = sum(len(case.images) for case in training)
            recipe = replace(recipe, steps=recipe.epochs * math.ceil(slices / recipe.batch))
        run = Run(run_dir, recipe, torch.device(device))
        run.resume()
        if start and not run.progress.step:
            run.start_from(start, SliceSampler(training, weights, recipe, seed=recipe.seed))
        sampler = SliceSampler(training, weights, recipe, seed=recipe.seed + run.progress.step)
        held_out = [case for case in cases if case.name in hold_out]
        run.train(sampler, held_out, minutes and minutes * 60, check_minutes * 60)
    except (DataError, TrainingError) as error:
        sys.exit(f"error: {error}")


@main.command()
@click.argument("run_dir", type=click.Path(path_type=pathlib.Path))
@click.option("--name", required=True, help="Of the model: NAME.safetensors.")
@click.option("--version", required=True, help="Of the weights.")
@click.option("--trained-on", required=True, help="The training data, in words; travels with the weights.")
@click.option("--to", "folder", type=click.Path(path_type=pathlib.Path), default=WEIGHTS_DIR, show_default="weights/")
def export(run_dir: pathlib.Path, name: str, version: str, trained_on: str, folder: pathlib.Path) -> None:
    """Turn the run in RUN_DIR into weights that the container uses."""
    for path in write_model(run_dir, name, version, trained_on, folder):
        click.echo(path)


if __name__ == "__main__":
    main()
