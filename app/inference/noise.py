"""How noisy a slice is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import hounsfield

TILE_MM = 6.0  # smaller than most organs, larger than the grain of noise
LEAST_TILES = 100  # of soft tissue, for a measure that can be trusted
BIN_HU, HIGHEST_HU = 1.0, 100.0
SMOOTH = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1])  # so that the most frequent value of some hundred is well defined


def noise_hu(plane: NDArray[np.int16], spacing_yx_mm: Sequence[float]) -> float | None:
    """Standard deviation of the noise in soft tissue: the most frequent one of small tiles.

    Most tiles hold a single tissue; those across a border have larger and unequal deviations. Source: Christianson et
    al., "Automated Technique to Measure Noise in Clinical CT Examinations", AJR 2015; there with overlapping windows.

    Args:
        plane: (Y, X), HU.
        spacing_yx_mm: distance of rows and of columns.

    Returns:
        HU; None where there is hardly any soft tissue.
    """
    height, width = (max(2, round(TILE_MM / mm)) for mm in spacing_yx_mm)
    rows, columns = plane.shape[0] // height, plane.shape[1] // width
    pixels = plane[: rows * height, : columns * width].astype(np.float32)

    def means(values: NDArray[np.float32]) -> NDArray[np.float32]:
        of_rows = values.reshape(rows, height, columns * width).mean(1)
        of_tiles: NDArray[np.float32] = of_rows.reshape(rows, columns, width).mean(2)
        return of_tiles

    mean = means(pixels)
    variance = means(np.square(pixels)) - np.square(mean)
    low, high = hounsfield.SOFT_TISSUE
    deviations = np.sqrt(np.maximum(variance[(mean > low) & (mean < high)], 0))
    if len(deviations) < LEAST_TILES:
        return None
    counts, edges = np.histogram(deviations, np.arange(0, HIGHEST_HU + BIN_HU, BIN_HU))
    return float(edges[np.convolve(counts, SMOOTH, "same").argmax()] + BIN_HU / 2)
