"""The body's box, outside which the network need not look."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import hounsfield
from ..engines.engine import Box
from ..strides import INPUT_STRIDE, LOGITS_STRIDE

SMOOTH_MM = 17.0  # wide enough that noise, the thin shell of a table and its rods average out
MARGIN_MM = 12.0


def body_box(inputs: NDArray[np.float32], spacing_yx_mm: Sequence[float], window_hu: Sequence[float]) -> Box:
    """The box that holds the abdominal wall, and so the organs, in all of the slices.

    Args:
        inputs: network inputs (N, H, W), 0..1; H and W multiples of 32.
        spacing_yx_mm: distance of rows and of columns.
        window_hu: the Hounsfield units that became 0 and 1.

    Returns:
        Rows and columns, multiples of 32 in size; the whole slice where no body is found.
    """
    low, high = window_hu
    smooth = inputs
    for axis, mm in zip((1, 2), spacing_yx_mm, strict=True):
        smooth = _means(smooth, axis, SMOOTH_MM / mm)
    body = smooth.max(axis=0) > (hounsfield.WALL - low) / (high - low)
    rows, columns = (
        _span(body.any(axis=axis), MARGIN_MM / mm, side)
        for axis, mm, side in zip((1, 0), spacing_yx_mm, inputs.shape[1:], strict=True)
    )
    return rows, columns


def _means(inputs: NDArray[np.float32], axis: int, width: float) -> NDArray[np.float32]:
    """Means around every fourth pixel of an axis, with zeros beyond its ends.

    Not a matrix product: the threads of NumPy's spin while they wait, which took a sixth of a run's CPU time.
    """
    pixels, side = max(1, round(width)) | 1, inputs.shape[axis]
    before = (slice(None),) * axis
    padded = np.pad(inputs, [(pixels // 2, pixels // 2) if i == axis else (0, 0) for i in range(inputs.ndim)])
    parts = (padded[*before, first : first + side : LOGITS_STRIDE] for first in range(pixels))
    return functools.reduce(np.add, parts) / np.float32(pixels)


def _span(line: NDArray[np.bool_], margin: float, side: int) -> slice:
    """The part of a side that holds everything that is true on its line of every fourth pixel, and a margin.

    It starts on a pixel of the logits, is grown to a multiple of 32, and stays on the side.
    """
    there = np.flatnonzero(line)
    if not len(there):
        return slice(0, side)
    low, high = LOGITS_STRIDE * float(there[0]) - margin, LOGITS_STRIDE * float(there[-1]) + margin
    length = min(side, math.ceil((high - low) / INPUT_STRIDE) * INPUT_STRIDE)
    start = min(max(0, round((low + high - length) / 2)), side - length)
    start -= start % LOGITS_STRIDE
    return slice(start, start + length)
