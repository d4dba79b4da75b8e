"""Slices to and from the network's grid in NumPy: what `torch_images` does, to rounding."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Taps = tuple[NDArray[np.intp], NDArray[np.float32]]  # pixels that are read and their weights, (taps, pixels out) each


def prepared(hounsfield: NDArray[np.int16], window_hu: Sequence[float], grid: Sequence[int]) -> NDArray[np.float32]:
    """A slice (Y, X) of HU, windowed to 0..1 and resampled to the network's grid: (h, w)."""
    low, high = window_hu
    windowed = hounsfield.astype(np.float32)
    windowed -= np.float32(low)
    windowed *= np.float32(255.0 / (high - low))
    np.clip(windowed, 0.0, 255.0, out=windowed)
    result = to_grid(windowed, grid)
    result /= np.float32(255.0)
    return result


def to_grid(plane: NDArray[np.float32], grid: Sequence[int]) -> NDArray[np.float32]:
    """Resample a slice (Y, X) bilinearly to (h, w); antialiased where that makes it smaller."""
    height, width = grid
    rows = resample(plane, taps(len(plane), height, antialias=True))
    return resample(rows.T, taps(plane.shape[1], width, antialias=True)).T


def to_labels(logits: NDArray[np.float32], shape_yx: Sequence[int]) -> NDArray[np.uint8]:
    """Resample logits (K, h, w) bilinearly to (K, Y, X) and return the channel that is largest at each pixel, (Y, X).

    Only pixels near one where another channel than the first (the background) is larger are computed: between pixels of
    background lies background.
    """
    labels = np.zeros(tuple(shape_yx), np.uint8)
    shows_other = (logits[1:] > logits[0]).any(axis=0)
    down, across = (
        (taps(n, out), shows_other.any(axis=axis))
        for n, out, axis in zip(logits.shape[1:], shape_yx, (1, 0), strict=True)
    )
    rows, columns = _reached(*down), _reached(*across)
    if rows.start == rows.stop or columns.start == columns.stop:
        return labels
    part = resample(logits.transpose(1, 0, 2), _cut(down[0], rows))  # (y, K, w)
    part = resample(part.T, _cut(across[0], columns))  # (x, K, y)
    largest, found = part[:, 0], np.zeros((part.shape[0], part.shape[2]), np.uint8)
    for channel in range(1, part.shape[1]):
        is_larger = part[:, channel] > largest
        largest = np.maximum(largest, part[:, channel])
        found[is_larger] = channel
    labels[rows, columns] = found.T
    return labels


@functools.lru_cache(maxsize=16)
def taps(length: int, wanted: int, antialias: bool = False) -> Taps:
    """The pixels of a line that each pixel of its bilinear resampling reads, and their weights.

    Pixel centres are aligned (torch's align_corners False). The weights are a triangle's, as wide as two pixels; with
    `antialias`, where the line becomes shorter, as wide as two of the resampled pixels. torch's `interpolate`,
    following Pillow, does the same. At the ends, torch repeats the last pixel; here the truncated triangle is scaled to
    a sum of 1, which is equivalent.

    Args:
        length: pixels of the line.
        wanted: pixels that it is resampled to.
        antialias: widen the triangle where the line becomes shorter.
    """
    scale = length / wanted
    half = max(scale, 1.0) if antialias else 1.0
    centres = scale * (np.arange(wanted) + 0.5)
    first = np.maximum((centres - half + 0.5).astype(np.intp), 0)
    stop = np.minimum((centres + half + 0.5).astype(np.intp), length)
    pixels = first + np.arange((stop - first).max())[:, None]
    weights = np.maximum(1.0 - np.abs(pixels + 0.5 - centres) / half, 0.0) * (pixels < stop)
    weights /= weights.sum(axis=0)
    return np.minimum(pixels, length - 1), weights.astype(np.float32)


def resample(lines: NDArray[np.float32], by: Taps) -> NDArray[np.float32]:
    """Resample the first axis."""
    lines = np.ascontiguousarray(lines)
    spread = (slice(None), *[None] * (lines.ndim - 1))
    pixels, weights = by
    result: NDArray[np.float32] = lines[pixels[0]] * weights[0][spread]
    for pixel, weight in zip(pixels[1:], weights[1:], strict=True):
        result += lines[pixel] * weight[spread]
    return result


def _reached(by: Taps, line: NDArray[np.bool_]) -> slice:
    """The pixels of a resampled line that read something which is true on the line, and all between them."""
    pixels, weights = by
    reached = np.flatnonzero((line[pixels] & (weights > 0)).any(axis=0))
    return slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)


def _cut(by: Taps, part: slice) -> Taps:
    """The taps of a part of the resampled line."""
    return by[0][:, part], by[1][:, part]
