"""A training run's averaged weights, or a file of an older format -> a model in weights/ that `app` loads."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from app.checkpoint import check, read_file, save_checkpoint
from app.network import tensors_of
from training.weights import TrainingError, averaged_weights, load_run, run_config, trained_weights

NAME = r"\w[\w.-]*"  # of a file without spaces, as the manifest lists it


def export(
    run_dir: pathlib.Path,
    name: str,
    version: str,
    training_data: str,
    folder: pathlib.Path,
    average_with: Sequence[str] = (),
) -> pathlib.Path:
    """Write a run's averaged weights, of its best validation where there is one, as model `name`; returns its file.

    Args:
        run_dir: holds last.pt, and best.pt where the recipe has a patience.
        name: of the model.
        version: of the weights.
        training_data: what they were trained on, in words; travels with the weights.
        folder: usually weights/.
        average_with: bundled models from which the run started, or folders of runs with the same start: the mean of
            all is written. What training gained stays for the most part, and what it forgot comes back (Wortsman et
            al., "Model soups", ICML 2022, and "Robust fine-tuning of zero-shot models", CVPR 2022).

    Raises:
        TrainingError: it cannot be called so, a bundled model has the name, there is no such run, its network is not
            HRNet-OCR, or not that of what it is averaged with.
    """
    if not re.fullmatch(NAME, name):
        raise TrainingError(f"'{name}': not a model's name; expected letters, digits, and _ . - between them")
    _check_place(name, folder)
    state = load_run(run_dir)
    config = replace(run_config(run_dir, state), name=name, version=version, training_data=training_data)
    weights = averaged_weights(state)
    others = [trained_weights(source, config.channels_in) for source in average_with]
    for source, other in zip(average_with, others, strict=True):
        if {key: value.shape for key, value in other.items()} != {key: value.shape for key, value in weights.items()}:
            raise TrainingError(f"{source}: its network is not that of {run_dir}; average runs of one recipe")
    weights = {key: torch.stack([one[key].float() for one in (weights, *others)]).mean(0) for key in weights}
    return save_checkpoint(config, tensors_of(weights), folder)


def convert(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> pathlib.Path:
    """Write a model of an older format, one file or all of its shards, in today's format; returns its file.

    Raises:
        CheckpointError: a file is not a checkpoint of this program, or the shards are not all of one model.
        TrainingError: a bundled model has its name.
    """
    parts = [read_file(path) for path in paths]
    config = parts[0][0]
    tensors = {name: tensor for _, part in parts for name, tensor in part.items()}
    _check_place(config.name, folder)
    check(paths[0], config, tensors)
    return save_checkpoint(config, tensors, folder)


def _check_place(name: str, folder: pathlib.Path) -> None:
    """Keep a model from replacing a bundled one: those have model cards beside them, on any file system.

    Raises:
        TrainingError: there is a card of that name.
    """
    if name.casefold() in (card.stem.casefold() for card in folder.glob("*.md")):
        raise TrainingError(
            f"{folder / name}.safetensors: would replace the bundled model; choose another name, or a folder with --to"
        )
