"""Hounsfield units -> network input; and the body's box, outside which the network need not look.

Training prepares its slices with the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .. import hounsfield
from ..network import INPUT_STRIDE, LOGITS_STRIDE
from .grid import to_grid

Box = tuple[slice, slice]  # rows, columns

SMOOTH_MM = 17.0  # wide enough that noise, the thin shell of a table and its rods average out
MARGIN_MM = 12.0


def window(hounsfield: Tensor, low: float, high: float) -> Tensor:
    """Map a window of Hounsfield units linearly to 0..255, the range of the paper; values outside are clipped.

    Args:
        hounsfield: any shape, any float dtype.
        low: HU that becomes 0.
        high: HU that becomes 255; above `low`.
    """
    return hounsfield.sub(low).mul_(255.0 / (high - low)).clamp_(0.0, 255.0)


def windowed_slice(hounsfield: Tensor, window_hu: Sequence[float], grid: Sequence[int]) -> Tensor:
    """A slice (Y, X) of HU, windowed to 0..255 and resampled to the network's grid: (h, w) float32."""
    # float32: windowed values are resampled before they are rounded to the network's precision.
    return to_grid(window(hounsfield.float(), *window_hu)[None, None], grid)[0, 0]


def network_input(windowed: Tensor) -> Tensor:
    """Map 0..255 to 0..1, so that the zeros with which convolutions pad an image mean air; the same shape."""
    return windowed / 255.0


def body_box(inputs: Tensor, spacing_yx_mm: Sequence[float], window_hu: Sequence[float]) -> Box:
    """The box that holds the abdominal wall, and so the organs, in all of the slices.

    Args:
        inputs: network inputs (N, H, W), 0..1; H and W multiples of 32.
        spacing_yx_mm: distance of rows and of columns.
        window_hu: the Hounsfield units that became 0 and 1.

    Returns:
        Rows and columns, multiples of 32 in size; the whole slice where no body is found.
    """
    low, high = window_hu
    kernel = [max(1, round(SMOOTH_MM / mm)) | 1 for mm in spacing_yx_mm]
    smooth = functional.avg_pool2d(inputs[:, None], kernel, LOGITS_STRIDE, [side // 2 for side in kernel])
    body = smooth.amax((0, 1)) > (hounsfield.WALL - low) / (high - low)
    rows, columns = (
        _span(body.any(axis), MARGIN_MM / mm, side)
        for axis, mm, side in zip((1, 0), spacing_yx_mm, inputs.shape[1:], strict=True)
    )
    return rows, columns


def _span(line: Tensor, margin: float, side: int) -> slice:
    """The part of a side that holds everything that is true on its line of every fourth pixel, and a margin.

    It starts on a pixel of the logits, is grown to a multiple of 32, and stays on the side.
    """
    there = torch.nonzero(line)
    if not len(there):
        return slice(0, side)
    low, high = LOGITS_STRIDE * float(there[0]) - margin, LOGITS_STRIDE * float(there[-1]) + margin
    length = min(side, math.ceil((high - low) / INPUT_STRIDE) * INPUT_STRIDE)
    start = min(max(0, round((low + high - length) / 2)), side - length)
    start -= start % LOGITS_STRIDE
    return slice(start, start + length)
