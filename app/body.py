"""Where the organs can lie in a slice: the network need not look at the air, the table and the fat around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from app.slices import GRID_STEP

Box = tuple[slice, slice]  # rows, columns

WALL_HU = -30.0  # between fat (-100) and muscle (50): the muscles of the abdominal wall enclose the organs
SMOOTH_MM = 17.0  # wide enough that noise, the thin shell of a table and its rods average out
MARGIN_MM = 12.0
STRIDE = 4  # of the network's logits: a box starts on one of their pixels


def body_box(inputs: Tensor, spacing_yx_mm: Sequence[float], window_hu: Sequence[float]) -> Box:
    """The box that holds the abdominal wall, and so the organs, in all of the slices.

    Args:
        inputs: network inputs (N, H, W), 0..1; H and W multiples of 32.
        spacing_yx_mm: distance of rows and of columns.
        window_hu: the Hounsfield units that became 0 and 1.

    Returns:
        Rows and columns, multiples of 32 in size; the whole slice where nothing is found.
    """
    low, high = window_hu
    kernel = [max(1, round(SMOOTH_MM / mm)) | 1 for mm in spacing_yx_mm]
    smooth = functional.avg_pool2d(inputs[:, None], kernel, STRIDE, [side // 2 for side in kernel])
    body = smooth.amax((0, 1)) > (WALL_HU - low) / (high - low)
    rows, columns = (
        _span(body.any(axis), MARGIN_MM / mm, side)
        for axis, mm, side in zip((1, 0), spacing_yx_mm, inputs.shape[1:], strict=True)
    )
    return rows, columns


def _span(line: Tensor, margin: float, side: int) -> slice:
    """The part of a side that holds all that is true on its line of every fourth pixel, and a margin.

    It is grown to a multiple of 32 and kept on the side.
    """
    there = torch.nonzero(line)
    if not len(there):
        return slice(0, side)
    low, high = STRIDE * float(there[0]) - margin, STRIDE * float(there[-1]) + margin
    length = min(side, math.ceil((high - low) / GRID_STEP) * GRID_STEP)
    start = min(max(0, round((low + high - length) / 2)), side - length)
    start -= start % STRIDE
    return slice(start, start + length)
