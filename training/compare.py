"""The paper's comparison: other encoders and decoders beside HRNet-OCR, trained by one loop for the same time each.

Scored on whole held-out volumes through the shipped inference path.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from app.engines.torch_engine import Model, TorchEngine
from app.organs import IGNORE, ORGANS, Organ
from app.segmenter import Segmenter
from app.volumes import open_volume
from evaluation.names import Labelled
from evaluation.overlap import dice
from evaluation.tables import table
from training.cache import CachedCase, labels_of
from training.engine import Run, Timing
from training.other_networks import DECODERS, ENCODERS
from training.recipes import PAPER_MODEL, Recipe
from training.recipes.fast import RECIPE as FAST
from training.sampling import SliceSampler
from training.state import RunState

SIDE = 256  # pixels of the slice for flops and milliseconds
REPEATS = 5
BASE = replace(FAST, optimiser=replace(FAST.optimiser, learning_rate=1e-3))
GRID: dict[str, Recipe] = {
    **{
        f"{encoder}-{decoder}": replace(
            BASE, architecture=f"{encoder}-{decoder}", loss=replace(BASE.loss, coarse_weight=0.0)
        )
        for encoder in ENCODERS
        for decoder in DECODERS
    },
    "hrnet18-ocr": BASE,
    "hrnet48-ocr": replace(
        BASE,
        model=replace(
            BASE.model,
            width=PAPER_MODEL.width,
            ocr_channels=PAPER_MODEL.ocr_channels,
            key_channels=PAPER_MODEL.key_channels,
        ),
    ),
}


@dataclass(frozen=True)
class Row:
    """One network of the comparison.

    Attributes:
        name: of the network.
        parameters: trainable ones.
        gflops: floating point operations of one slice of 256 x 256, in 10^9; a multiply-add counts two.
        milliseconds: for that slice, one at a time, batch norm not folded.
        steps: training steps in the time given.
        dice: mean DSC of the held-out volumes, per organ.
    """

    name: str
    parameters: int
    gflops: float
    milliseconds: float
    steps: int
    dice: dict[Organ, float]


def compare(
    folder: pathlib.Path,
    cases: Sequence[CachedCase],
    held_out: Sequence[Labelled],
    minutes: float,
    device: torch.device,
) -> list[Row]:
    """Train every network of the grid for the same time and score it.

    Args:
        folder: gets a run's folder for each; runs that are there go on, or are only scored.
        cases: to train on; all are drawn alike.
        held_out: name, image and label of the volumes to score.
        minutes: of training, each.
        device: to train and infer on.
    """
    rows = []
    for name, recipe in GRID.items():
        state = RunState(folder / name, recipe, device)
        state.resume()
        sampler = SliceSampler(cases, [1.0] * len(cases), recipe, recipe.seed + state.progress.step, device)
        Run(state, Timing(minutes)).train(sampler)
        network = state.average.module.eval()
        model = Model(replace(recipe.model, name=name), network, device, torch.float32)
        rows.append(
            Row(
                name,
                sum(p.numel() for p in network.parameters()),
                count_flops(network, recipe.model.channels_in, device) / 1e9,
                1000 * seconds_per_slice(network, recipe.model.channels_in, device),
                state.progress.step,
                mean_dice(Segmenter(TorchEngine(model, {})), held_out),
            )
        )
        print(markdown(rows[-1:]), flush=True)
    return rows


def count_flops(network: nn.Module, channels_in: int, device: torch.device) -> int:
    """Floating point operations of one slice."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, channels_in, SIDE, SIDE, device=device))
    return int(counter.get_total_flops())


@torch.inference_mode()
def seconds_per_slice(network: nn.Module, channels_in: int, device: torch.device) -> float:
    """The fastest of a few, after one to warm up."""
    image = torch.rand(1, channels_in, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(1 + REPEATS):
        begin = time.perf_counter()
        network(image).refined.sum().item()  # .item() waits for a GPU
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])


def mean_dice(segmenter: Segmenter, held_out: Sequence[Labelled]) -> dict[Organ, float]:
    """Mean DSC per organ over whole volumes; voxels that nobody annotated are left out."""
    scores: dict[Organ, list[float]] = {organ: [] for organ in ORGANS}
    for _, image, label in held_out:
        scan = open_volume(image)
        reference, prediction = labels_of(label, scan), scan.geometry.orient(segmenter.segment(image))
        for organ, values in scores.items():
            values.append(dice(reference == organ, (prediction == organ) & (reference != IGNORE)))
    return {organ: float(np.mean(values)) for organ, values in scores.items()}


def markdown(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    header = ["network", "parameters (M)", "GFLOP per slice", "ms per slice", "steps"]
    return table(
        [*header, *(f"DSC {organ.key}" for organ in ORGANS)],
        [
            [
                row.name,
                f"{row.parameters / 1e6:.2f}",
                f"{row.gflops:.1f}",
                f"{row.milliseconds:.0f}",
                row.steps,
                *(f"{row.dice[organ]:.3f}" for organ in ORGANS),
            ]
            for row in rows
        ],
    )
