"""A training run's averaged weights -> a model in weights/ that `app` loads."""

from __future__ import annotations

import pathlib

import torch

from app.checkpoint import ModelConfig, save_checkpoint
from app.organs import Organ
from training.recipes import Recipe


def export(
    run_dir: pathlib.Path, name: str, version: str, training_data: str, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Write the moving average of a run's weights as model `name` into a folder, and return its files.

    Args:
        run_dir: holds last.pt.
        name: of the model.
        version: of the weights.
        training_data: what they were trained on, in words; travels with the weights.
        folder: usually weights/.
    """
    state = torch.load(run_dir / "last.pt", map_location="cpu", weights_only=True)
    recipe = Recipe(**state["recipe"])
    prefix = "module."  # AveragedModel's, which also keeps a counter
    weights = {key.removeprefix(prefix): value for key, value in state["average"].items() if key.startswith(prefix)}
    config = ModelConfig(
        name=name,
        version=version,
        width=recipe.width,
        classes=len(Organ),
        channels_in=3,
        ocr_channels=recipe.ocr_channels,
        key_channels=recipe.key_channels,
        window_hu=recipe.window_hu,
        spacing_mm=recipe.spacing_mm,
        neighbour_mm=recipe.neighbour_mm,
        training_data=training_data,
    )
    return save_checkpoint(config, weights, folder)
