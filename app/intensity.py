"""Hounsfield units -> 0..255 in a window -> network input."""

from __future__ import annotations

from torch import Tensor


def window(hounsfield: Tensor, low: float, high: float) -> Tensor:
    """Map a window of Hounsfield units linearly to 0..255, the range of the paper; what lies outside is clipped.

    Args:
        hounsfield: any shape, any float dtype.
        low: HU that becomes 0.
        high: HU that becomes 255; above `low`.
    """
    return hounsfield.sub(low).mul_(255.0 / (high - low)).clamp_(0.0, 255.0)


def network_input(windowed: Tensor) -> Tensor:
    """Map 0..255 to 0..1, so that the zeros with which convolutions pad an image mean air; the same shape."""
    return windowed / 255.0
