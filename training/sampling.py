"""Draw the slices of each training batch and centre them on one canvas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from app.engines.torch_engine import free_memory
from app.inference.plan import neighbour_rows
from app.organs import IGNORE, ORGANS, Organ
from training.cache import CachedCase
from training.recipes import Recipe

REPEAT_SHARE = 0.05  # crops whose channels are all the same slice, as a scan of one slice has
JITTER_SHARE = 0.25  # crops whose neighbours are a slice nearer to each other, or farther

CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, sizes


class SliceSampler:
    """Endless random batches of full slices, centred on a canvas that holds the largest of them.

    Args:
        cases: the training cases.
        weights: how often each is drawn, relative to the others.
        recipe: batch size, neighbours, share of organ slices.
        seed: of the sequence.
        device: where batches are made. A GPU gets a copy of all cases if that takes less than half of its free memory;
            otherwise the batches come from the CPU.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        weights: Sequence[float],
        recipe: Recipe,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        self.cases, self.recipe = cases, recipe
        needed = sum(case.images.nbytes + case.labels.nbytes for case in cases)
        self.device = device if device.type == "cuda" and 2 * needed < free_memory(device) else CPU
        self.volumes = [
            tuple(torch.from_numpy(volume).to(self.device) for volume in (case.images, case.labels)) for case in cases
        ]
        self.odds = np.array(weights) / np.sum(weights)
        self.rng = np.random.default_rng(seed)
        self.canvas = tuple(max(case.images.shape[axis] for case in cases) for axis in (1, 2))
        self.organ_slices = [
            {organ: rows for organ in ORGANS if (rows := np.flatnonzero((case.labels == organ).any((1, 2)))).size}
            for case in cases
        ]

    def draw(self) -> tuple[int, int]:
        """One (case, slice): any slice, or one with a chosen organ."""
        index = int(self.rng.choice(len(self.cases), p=self.odds))
        with_organ = self.organ_slices[index]
        if with_organ and self.rng.random() < self.recipe.crops.organ_share:
            odds = np.array(
                [self.recipe.crops.pancreas_odds if organ == Organ.PANCREAS else 1.0 for organ in with_organ]
            )
            rows = list(with_organ.values())[self.rng.choice(len(odds), p=odds / odds.sum())]
            return index, int(self.rng.choice(rows))
        return index, int(self.rng.integers(len(self.cases[index].images)))

    def batch(self) -> Batch:
        """Images (N, C, H, W) and labels (N, H, W) uint8 on the canvas, and the slices' sizes (N, 2).

        Around a slice the image is air and the label 255.
        """
        n, model = self.recipe.crops.batch, self.recipe.model
        images = torch.zeros((n, model.channels_in, *self.canvas), dtype=torch.uint8, device=self.device)
        labels = torch.full((n, *self.canvas), IGNORE, dtype=torch.uint8, device=self.device)
        sizes = []
        for i in range(n):
            index, z = self.draw()
            slices, reference = self.volumes[index]
            top, left = ((a - b) // 2 for a, b in zip(self.canvas, slices.shape[1:], strict=True))
            place = (slice(top, top + slices.shape[1]), slice(left, left + slices.shape[2]))
            step = self.cases[index].neighbour_step(model.neighbour_mm)
            if step and self.rng.random() < JITTER_SHARE:
                step = max(1, step + int(self.rng.choice((-1, 1))))
            if self.rng.random() < REPEAT_SHARE:
                step = 0
            for channel, row in enumerate(neighbour_rows(z, step, model.channels_in, len(slices))):
                images[i, channel][place] = slices[row]
            labels[i][place] = reference[z]
            sizes.append(slices.shape[1:])
        return images, labels, torch.tensor(sizes, dtype=torch.float32, device=self.device)
