"""Thin slices averaged to the thickness that the networks were trained on.

They are noisier than anything the networks saw there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .plan import with_neighbours

SLAB_MM = 2.5  # thinner slices were averaged to it before training


def slabs(
    slices: Iterable[tuple[int, NDArray[np.int16]]], spacing_z_mm: float, depth: int
) -> Iterator[tuple[int, NDArray[np.int16]]]:
    """Each z with the mean of 2.5 mm around it, or with its slice where that is no thinner.

    Args:
        slices: (z, slice), slice (Y, X) int16 HU, every z of 0..depth-1 once, in ascending or descending order.
        spacing_z_mm: distance of the slices.
        depth: their number.
    """
    weights = slab_weights(spacing_z_mm)
    for z, rows in with_neighbours(slices, 1, len(weights), depth):
        yield z, _mean(rows, weights)


def slab_weights(spacing_z_mm: float) -> list[float]:
    """How much a slice and its neighbours add to a slab around it, from the lowest z up; their number is odd.

    >>> slab_weights(5.0), slab_weights(1.25)
    ([1.0], [0.25, 0.5, 0.25])
    """
    slices = max(1.0, SLAB_MM / spacing_z_mm)
    reach = math.ceil((slices - 1) / 2 - 1e-3)
    return [min(1.0, (slices + 1) / 2 - abs(i)) / slices for i in range(-reach, reach + 1)]


def _mean(rows: Sequence[NDArray[np.int16]], weights: Sequence[float]) -> NDArray[np.int16]:
    if len(rows) == 1:
        return rows[0]
    mean = np.zeros(rows[0].shape, np.float32)
    for plane, weight in zip(rows, weights, strict=True):
        mean += plane * np.float32(weight)
    return np.rint(mean, out=mean).astype(np.int16)
