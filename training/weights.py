"""Where trained weights come from: the folder of a run, or a bundled model. And the network that they belong in."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from app.checkpoint import ModelConfig, bundled_models, find_model, load_checkpoint
from app.network import build, load
from training.grow import STEM, fit_input_channels
from training.other_networks import other_network
from training.recipes import HRNET_OCR, Recipe

LAST, BEST = "last.pt", "best.pt"


class TrainingError(Exception):
    """Training cannot go on; the message says why and what to do."""


def build_network(recipe: Recipe) -> nn.Module:
    """The recipe's network, He-initialised if it is HRNet-OCR."""
    if recipe.architecture != HRNET_OCR:
        return other_network(recipe.architecture, recipe.model.channels_in)
    return build(recipe.model)


def bundled_weights(model: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state dict of a bundled model, in float32 on the CPU.

    Raises:
        CheckpointError: there is no such model, or its file is damaged.
    """
    checkpoint = load_checkpoint(find_model(model))
    return checkpoint.config, load(checkpoint).state_dict()


def read_state(path: pathlib.Path) -> dict[str, Any]:
    """What a run saved, on the CPU.

    Raises:
        TrainingError: there is no such file, or it is not one that a run saved.
    """
    if not path.exists():
        raise TrainingError(f"{path}: no such checkpoint; give the folder of a run that was trained")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"{path}: not a readable checkpoint of a run ({reason}); remove it or copy it again"
        ) from error
    if "average" not in state:
        raise TrainingError(f"{path}: not a checkpoint of a run (it has no averaged weights); give a run's folder")
    return state


def load_run(folder: pathlib.Path) -> dict[str, Any]:
    """A run's checkpoint: of its best validation where its recipe has a patience, else the last one.

    Raises:
        TrainingError: there is none, or it cannot be read.
    """
    best = folder / BEST
    return read_state(best if best.exists() else folder / LAST)


def run_config(folder: pathlib.Path, state: dict[str, Any]) -> ModelConfig:
    """What a run's network is and sees; nameless.

    Raises:
        TrainingError: the run is of an older version, whose recipes were flat, or its network is not HRNet-OCR.
    """
    recipe = state["recipe"]
    if "model" not in recipe:
        raise TrainingError(
            f"{folder}: a run of version 0.6.1 or older, whose recipe has another layout; "
            "export it with the version that trained it, or train it a little longer with this one first"
        )
    if recipe["architecture"] != HRNET_OCR:
        raise TrainingError(f"{folder}: a run of {recipe['architecture']}; the container runs {HRNET_OCR} only")
    return ModelConfig(**recipe["model"])


def averaged_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The network's averaged weights in a run's checkpoint."""
    prefix = "module."  # AveragedModel's, which also keeps a counter
    return {key.removeprefix(prefix): value for key, value in state["average"].items() if key.startswith(prefix)}


def is_run(source: str) -> bool:
    """Whether this is the folder of a run, and not a bundled model's name."""
    return (pathlib.Path(source) / LAST).exists()


def trained_weights(source: str, channels_in: int) -> dict[str, Tensor]:
    """A run's averaged weights or a bundled model's, for a number of input channels.

    Args:
        source: the folder of the run, or the model's name.
        channels_in: no fewer than they were trained with.

    Raises:
        TrainingError: there is neither.
        CheckpointError: the bundled model is damaged.
    """
    weights = averaged_weights(load_run(pathlib.Path(source))) if is_run(source) else known_weights(source)[1]
    if STEM in weights:  # the networks of `compare` have another
        weights[STEM] = fit_input_channels(weights[STEM], channels_in)
    return weights


def trained_network(source: str) -> tuple[ModelConfig, nn.Module]:
    """The network of a run, with its averaged weights, or of a bundled model: float32, on the CPU, in evaluation mode.

    Raises:
        TrainingError: there is neither, or the run's network is not HRNet-OCR.
        CheckpointError: the bundled model is damaged.
    """
    if is_run(source):
        folder = pathlib.Path(source)
        state = load_run(folder)
        config, weights = run_config(folder, state), averaged_weights(state)
    else:
        config, weights = known_weights(source)
    network = build(config, initialise=False)
    network.load_state_dict(weights)
    return config, network.eval().requires_grad_(False)


def known_weights(source: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """As `bundled_weights`, for a source that is not a run.

    Raises:
        TrainingError: it is not a bundled model either.
    """
    if source not in bundled_models():
        path = pathlib.Path(source) / LAST
        raise TrainingError(f"{path}: no checkpoint there; train there first, or name a bundled model")
    return bundled_weights(source)
