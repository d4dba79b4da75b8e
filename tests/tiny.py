"""The smallest model and recipe that still have every part: for tests that need one, whatever it computes."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.checkpoint import ModelConfig, save_checkpoint
from app.network import build, tensors_of
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
COARSE = replace(CONFIG, spacing_mm=6.0)  # a coarse grid saves time
TINY = Recipe(
    model=replace(PAPER_MODEL, width=4, ocr_channels=16, key_channels=8, spacing_mm=6.0, neighbour_mm=3.0),
    crops=Crops(size=(64, 48), batch=2),
    optimiser=Optimiser(steps=6, warmup_steps=2),
)


def tiny(**parts: Any) -> Recipe:  # noqa: ANN401
    """TINY, but for the values given: fields of the recipe, or of one of its parts."""
    changed: dict[str, Any] = {}
    for part in ("model", "crops", "optimiser", "loss"):
        value = getattr(TINY, part)
        own = {name: parts.pop(name) for name in list(parts) if hasattr(value, name)}
        changed[part] = replace(value, **own)
    return replace(TINY, **changed, **parts)


def segmentation_of(volume: Volume, mask: NDArray[np.uint8], case: str = "case", **fields: Any) -> Segmentation:  # noqa: ANN401
    """A record of a mask that no model made."""
    model = ModelInfo(name="tiny", version="1", sha256=fields.pop("sha256", {}), organs=ORGANS)
    return Segmentation(case=case, volume=volume, mask=mask, model=model, **fields)


N = TypeVar("N", bound=nn.Module)


def randomise(network: N, seed: int) -> N:
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


def save_undecided(config: ModelConfig, folder: pathlib.Path) -> pathlib.Path:
    """Save a model with random weights under which no label wins everywhere; return its file."""
    network = randomise(build(config), seed=9)
    with torch.no_grad():
        logits = network(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))).refined
        network.ocr_head.classify.bias -= logits.mean((0, 2, 3))
        scale = 1 / logits.std((0, 2, 3))
        network.ocr_head.classify.weight *= scale[:, None, None, None]
        network.ocr_head.classify.bias *= scale
    return save_checkpoint(config, tensors_of(network.state_dict()), folder)


def largest_rounding(tensor: NDArray[np.float32]) -> float:
    """The most that a tensor's values change in a checkpoint: half a step of 8 bits in a convolution's weights."""
    return float(np.abs(tensor).max()) / 127 / 2 * 1.001 if tensor.ndim == 4 else 0.0
