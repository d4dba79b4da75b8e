"""The outlines of a region of pixels, halfway between the pixels' centres, so that whoever fills them gets it back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import contourpy
import numpy as np
from numpy.typing import NDArray

from ..organs import bounding_box

Points = NDArray[np.float64]  # (n, 2), column and row, in pixels


def rings(level: NDArray[np.floating], threshold: float = 0.5) -> list[list[Points]]:
    """The rings around every area above a threshold, its outer one first, then its holes; the last point is the first.

    Args:
        level: (columns, rows).
        threshold: above 0, which is what surrounds the pixels.
    """
    padded = np.pad(level, 1).T  # contourpy has rows first
    tracer = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    filled = tracer.filled(threshold, float(padded.max()) + 1)
    areas, offsets = cast(tuple[list[Points], list[NDArray[np.uint32]]], filled)
    return [
        [points[start:end] - 1 for start, end in pairwise(starts)]
        for points, starts in zip(areas, offsets, strict=True)
    ]


def outlines(inside: NDArray[np.bool_]) -> list[Points]:
    """One outline per area, with its holes cut in (keyholes); the last point is not the first again.

    Args:
        inside: (columns, rows).
    """
    box = bounding_box(inside)
    if box is None:
        return []
    areas = [[_corners(ring[:-1]) for ring in area] for area in rings(inside[box].astype(np.float64))]
    corner = np.array([part.start for part in box])
    return [_with_keyholes(area[0], area[1:]) + corner for area in areas]


def _corners(ring: Points) -> Points:
    """A ring without the points on its straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    is_corner = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return ring[is_corner]


def _with_keyholes(outer: Points, holes: Sequence[Points]) -> Points:
    """A ring with every hole joined to it, the nearest first: a line between nearest corners crosses nothing else."""
    waiting = list(holes)
    while waiting:
        nearest = []
        for hole in waiting:
            squares = ((outer[:, None] - hole[None]) ** 2).sum(2)
            nearest.append((squares.min(), *np.unravel_index(squares.argmin(), squares.shape)))
        chosen = min(range(len(waiting)), key=lambda i: float(nearest[i][0]))
        _, i, j = nearest[chosen]
        hole = waiting.pop(chosen)
        outer = np.concatenate([outer[: i + 1], hole[j:], hole[: j + 1], outer[i:]])
    return outer
