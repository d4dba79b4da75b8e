"""Validation on the held-out cases during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from app.checkpoint import ModelConfig
from app.engines.torch_images import network_input, to_scan
from app.inference.plan import neighbour_rows
from app.organs import IGNORE, ORGANS, Organ
from app.strides import INPUT_STRIDE
from evaluation.overlap import dice
from training.cache import CachedCase


@torch.no_grad()
def grid_dice(
    network: nn.Module, cases: Sequence[CachedCase], model: ModelConfig, every: int = 3
) -> dict[Organ, float]:
    """DSC per organ, mean over cases: cheap validation in training, no score to quote.

    Scores every n-th slice of a volume, and every one of separate slices.
    """
    network.eval()
    device = next(network.parameters()).device
    scores: dict[Organ, list[float]] = {organ: [] for organ in ORGANS}
    for case in cases:
        step = case.neighbour_step(model.neighbour_mm)
        stride = 1 if case.spacing_z_mm is None else every
        last = len(case.images) - 1
        predictions = []
        for z in range(0, last + 1, stride):
            rows = neighbour_rows(z, step, model.channels_in, last + 1)
            image = network_input(torch.from_numpy(np.array(case.images[rows]))[None].float().to(device))
            pad = [-side % INPUT_STRIDE for side in image.shape[2:]]
            padded = nn.functional.pad(image, (0, pad[1], 0, pad[0]))
            logits = to_scan(network(padded).refined.float(), padded.shape[2:])
            predictions.append(logits.argmax(1)[0, : image.shape[2], : image.shape[3]].byte().cpu().numpy())
        reference, prediction = np.array(case.labels[::stride]), np.stack(predictions)
        prediction[reference == IGNORE] = IGNORE
        for organ, values in scores.items():
            if (reference == organ).any():
                values.append(dice(reference == organ, prediction == organ))
    return {organ: float(np.mean(values)) for organ, values in scores.items() if values}
