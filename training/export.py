"""A training run's averaged weights -> a model in weights/ that `app` loads."""

from __future__ import annotations

import pathlib

import torch

from app.checkpoint import ModelConfig, find_model, load_checkpoint, save_checkpoint
from app.organs import Organ
from training.recipes import HRNET_OCR, Recipe
from training.state import BEST, LAST, STEM, TrainingError, averaged_weights, widened


def model_config(recipe: Recipe, name: str, version: str, training_data: str) -> ModelConfig:
    """What inference must know of a recipe's network."""
    return ModelConfig(
        name=name,
        version=version,
        width=recipe.width,
        classes=len(Organ),
        channels_in=recipe.channels_in,
        ocr_channels=recipe.ocr_channels,
        key_channels=recipe.key_channels,
        window_hu=recipe.window_hu,
        spacing_mm=recipe.spacing_mm,
        neighbour_mm=recipe.neighbour_mm,
        training_data=training_data,
    )


def export(
    run_dir: pathlib.Path, name: str, version: str, training_data: str, folder: pathlib.Path, average_with: str = ""
) -> list[pathlib.Path]:
    """Write the averaged weights of a run, of its best look where there is one, as model `name`; returns its files.

    Args:
        run_dir: holds last.pt, and best.pt where the recipe has a patience.
        name: of the model.
        version: of the weights.
        training_data: what they were trained on, in words; travels with the weights.
        folder: usually weights/.
        average_with: a bundled model from which the run started: the mean of both is written. What training gained
            stays for the most part, and what it forgot comes back (Wortsman et al., "Robust fine-tuning of zero-shot
            models", CVPR 2022).

    Raises:
        TrainingError: there is no such run, or its network is not HRNet-OCR.
    """
    best, last = run_dir / BEST, run_dir / LAST
    if not last.exists():
        raise TrainingError(f"{last}: no such checkpoint; give the folder of a run that was trained")
    state = torch.load(best if best.exists() else last, map_location="cpu", weights_only=True)
    recipe = Recipe(**state["recipe"])
    if recipe.architecture != HRNET_OCR:
        raise TrainingError(f"{run_dir}: a run of {recipe.architecture}; the container runs {HRNET_OCR} only")
    weights = averaged_weights(state)
    if average_with:
        other = load_checkpoint(find_model(average_with)).network.state_dict()
        other[STEM] = widened(other[STEM], recipe.channels_in)
        weights = {key: (value.float() + other[key].float()) / 2 for key, value in weights.items()}
    return save_checkpoint(model_config(recipe, name, version, training_data), weights, folder)
