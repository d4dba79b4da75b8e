"""The smallest model and recipe that still have every part: for tests that need one, whatever it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.checkpoint import ModelConfig
from app.network import HrnetOcr
from app.organs import ORGANS
from app.segmentation import ModelInfo, Segmentation
from app.volumes import Volume
from training.recipes import PAPER_MODEL, Crops, Optimiser, Recipe

CONFIG = ModelConfig(
    name="tiny",
    version="1",
    width=2,
    labels=("background", "liver", "kidneys", "spleen", "pancreas"),
    channels_in=3,
    ocr_channels=8,
    key_channels=4,
    window_hu=(-125.0, 275.0),
    spacing_mm=1.5,
    neighbour_mm=3.0,
    training_data="none: random weights of a test",
)
TINY = Recipe(
    model=replace(PAPER_MODEL, width=4, ocr_channels=16, key_channels=8, spacing_mm=6.0, neighbour_mm=3.0),
    crops=Crops(size=(64, 48), batch=2),
    optimiser=Optimiser(steps=6, warmup_steps=2),
)


def tiny(**parts: object) -> Recipe:
    """TINY, but for the values given: fields of the recipe, or of one of its parts."""
    changed: dict[str, object] = {}
    for part in ("model", "crops", "optimiser", "loss"):
        value = getattr(TINY, part)
        own = {name: parts.pop(name) for name in list(parts) if hasattr(value, name)}
        changed[part] = replace(value, **own)
    return replace(TINY, **changed, **parts)


def segmentation_of(volume: Volume, mask: NDArray[np.uint8], case: str = "case", **fields: Any) -> Segmentation:  # noqa: ANN401
    """A record of a mask that no model made."""
    model = ModelInfo(name="tiny", version="1", sha256=fields.pop("sha256", {}), organs=ORGANS)
    return Segmentation(case=case, volume=volume, mask=mask, model=model, **fields)


def randomise(network: HrnetOcr, seed: int) -> HrnetOcr:
    """Give every tensor of a network, batch norm's statistics too, values that do not depend on the initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * noise.abs())
            elif tensor.ndim == 4:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            else:
                tensor.copy_(0.1 * noise + 0.6 * name.endswith("norm.weight"))
    return network.eval()


def largest_rounding(tensor: NDArray[np.float32]) -> float:
    """The most that a tensor's values change in a checkpoint: half a step of 8 bits in a convolution's weights."""
    return float(np.abs(tensor).max()) / 127 / 2 * 1.001 if tensor.ndim == 4 else 0.0
