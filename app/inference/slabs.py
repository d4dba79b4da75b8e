"""Thin slices averaged to the thickness that the networks were trained on; noisy ones made thicker and smoothed.

They are noisier than anything the networks saw there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .noise import noise_hu
from .plan import with_neighbours

SLAB_MM = 2.5  # thinner slices were averaged to it before training
NOISY_HU = 30.0  # few scans are as noisy
NOISY_SLAB_MM, NOISY_SIGMA_MM = 5.0, 1.0

Slab = Callable[[], NDArray[np.int16]]  # computes it, (Y, X) HU


def slabs(
    slices: Iterable[tuple[int, NDArray[np.int16]]], spacing_zyx_mm: Sequence[float], depth: int
) -> Iterator[tuple[int, Slab]]:
    """Each z with the mean of 2.5 mm around it; where that is noisy, with the mean of 5 mm, smoothed.

    A slice as thick as that is not averaged.

    Args:
        slices: (z, slice), slice (Y, X) int16 HU, every z of 0..depth-1 once, in ascending or descending order.
        spacing_zyx_mm: distance of slices, rows and columns.
        depth: number of slices.
    """
    usual, thick = (slab_weights(spacing_zyx_mm[0], slab_mm) for slab_mm in (SLAB_MM, NOISY_SLAB_MM))
    spare = (len(thick) - len(usual)) // 2

    def slab(rows: Sequence[NDArray[np.int16]]) -> NDArray[np.int16]:
        plane = _mean(rows[spare : len(rows) - spare], usual)
        if (noise_hu(plane, spacing_zyx_mm[1:]) or 0) <= NOISY_HU:
            return plane
        return _smooth(_mean(rows, thick), [NOISY_SIGMA_MM / mm for mm in spacing_zyx_mm[1:]])

    for z, rows in with_neighbours(slices, 1, len(thick), depth):
        yield z, partial(slab, rows)


def slab_weights(spacing_z_mm: float, slab_mm: float) -> list[float]:
    """How much a slice and its neighbours add to a slab around it, from the lowest z up; their number is odd.

    >>> slab_weights(5.0, 2.5), slab_weights(1.25, 2.5)
    ([1.0], [0.25, 0.5, 0.25])
    """
    slices = max(1.0, slab_mm / spacing_z_mm)
    reach = math.ceil((slices - 1) / 2 - 1e-3)
    return [min(1.0, (slices + 1) / 2 - abs(i)) / slices for i in range(-reach, reach + 1)]


def _mean(rows: Sequence[NDArray[np.int16]], weights: Sequence[float]) -> NDArray[np.int16]:
    if len(rows) == 1:
        return rows[0]
    return np.rint(_sum(rows, weights)).astype(np.int16)


def _smooth(plane: NDArray[np.int16], sigma_yx: Sequence[float]) -> NDArray[np.int16]:
    """The slice filtered by a Gaussian with these standard deviations, in pixels."""
    smooth = plane.astype(np.float32)
    for sigma in sigma_yx:  # along the rows' axis, then turned, so that the columns' is next
        reach = math.ceil(3 * sigma)
        weights = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
        padded = np.pad(smooth, ((reach, reach), (0, 0)), "edge")
        shifted = (padded[i : i + len(smooth)] for i in range(2 * reach + 1))
        smooth = _sum(shifted, weights / weights.sum()).T
    return np.rint(smooth).astype(np.int16)


def _sum(planes: Iterable[NDArray[Any]], weights: Iterable[float]) -> NDArray[np.float32]:
    parts = (plane * np.float32(weight) for plane, weight in zip(planes, weights, strict=True))
    return reduce(np.add, parts)
