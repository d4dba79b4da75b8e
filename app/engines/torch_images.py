"""Slices to and from the network's grid in torch; training prepares its slices with the same functions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


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


def to_grid(slices: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample slices (N, C, H, W), float32, to the network's grid; antialiased where that makes them smaller."""
    if tuple(slices.shape[2:]) == tuple(grid):
        return slices
    return functional.interpolate(slices, size=tuple(grid), mode="bilinear", align_corners=False, antialias=True)


def to_scan(logits: Tensor, shape_yx: Sequence[int]) -> Tensor:
    """The inverse of `to_grid`: logits (N, K, h, w), of any resolution -> (N, K, H, W) on the scan's pixels."""
    return functional.interpolate(logits, size=tuple(shape_yx), mode="bilinear", align_corners=False)
