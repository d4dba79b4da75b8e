"""Validation on the held-out cases during training, and the curve of all validations."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from app.engines.torch_images import network_input, to_scan
from app.inference.plan import neighbour_rows
from app.organs import IGNORE, ORGANS, Organ
from app.strides import INPUT_STRIDE
from app.whole_file import whole_file
from evaluation.overlap import dice
from training.cache import CachedCase
from training.recipes import Recipe

ORGAN_NAMES = [organ.key for organ in ORGANS]


@torch.no_grad()
def grid_dice(network: nn.Module, cases: Sequence[CachedCase], recipe: Recipe, every: int = 3) -> dict[Organ, float]:
    """DSC per organ, mean over cases: cheap validation in training, no score to quote.

    Scores every n-th slice of a volume, and every one of separate slices.
    """
    network.eval()
    device = next(network.parameters()).device
    scores: dict[Organ, list[float]] = {organ: [] for organ in ORGANS}
    for case in cases:
        step = case.neighbour_step(recipe.neighbour_mm)
        stride = 1 if case.spacing_z_mm is None else every
        last = len(case.images) - 1
        found = []
        for z in range(0, last + 1, stride):
            rows = neighbour_rows(z, step, recipe.channels_in, last + 1)
            image = network_input(torch.from_numpy(np.array(case.images[rows]))[None].float().to(device))
            pad = [-side % INPUT_STRIDE for side in image.shape[2:]]
            padded = nn.functional.pad(image, (0, pad[1], 0, pad[0]))
            logits = to_scan(network(padded).refined.float(), padded.shape[2:])
            found.append(logits.argmax(1)[0, : image.shape[2], : image.shape[3]].byte().cpu().numpy())
        reference, prediction = np.array(case.labels[::stride]), np.stack(found)
        prediction[reference == IGNORE] = IGNORE
        for organ, values in scores.items():
            if (reference == organ).any():
                values.append(dice(reference == organ, prediction == organ))
    return {organ: float(np.mean(values)) for organ, values in scores.items() if values}


def draw_curve(log: pathlib.Path, picture: pathlib.Path) -> None:
    """Draw a run's log.csv as a PNG: the loss over the steps, and the DSC of every validation."""
    with log.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows])
    left.set(xlabel="step", ylabel="loss")
    validated = [row for row in rows if row[ORGAN_NAMES[0]]]
    for organ in ORGAN_NAMES:
        known = [row for row in validated if row[organ]]
        right.plot([int(row["step"]) for row in known], [float(row[organ]) for row in known], "o-", label=organ)
    right.set(xlabel="step", ylabel="DSC on the grid", ylim=(0, 1))
    right.legend(loc="lower right")
    with whole_file(picture) as stream:
        figure.savefig(stream, format="png", dpi=100)
