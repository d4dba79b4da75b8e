"""Photometric distortion as in SSD and mmsegmentation: brightness, contrast, and saturation and hue in HSV.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2; ranges as commonly used with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS = 32 / 255  # of the input range
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_DEG = 18.0
SHARE = 0.5  # of the images that each of the four steps changes


def bgr_to_hsv(images: Tensor) -> Tensor:
    """(N, 3, H, W) BGR in 0..1 -> hue in degrees 0..360, saturation and value in 0..1; grey has hue 0."""
    blue, green, red = images.unbind(1)
    value, _ = images.max(1)
    chroma = value - images.min(1).values
    divisor = chroma.clamp_min(1e-12)
    hue = torch.where(
        value == red,
        (green - blue) / divisor % 6,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    saturation = chroma / value.clamp_min(1e-12)
    return torch.stack([60 * hue.where(chroma > 0, torch.zeros_like(hue)), saturation, value], dim=1)


def hsv_to_bgr(images: Tensor) -> Tensor:
    """The inverse of `bgr_to_hsv`; hue may be any angle."""
    hue, saturation, value = images.unbind(1)

    def channel(offset: int) -> Tensor:
        k = (offset + hue / 60) % 6
        return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(1), channel(3), channel(5)], dim=1)


def photometric_distortion(images: Tensor) -> Tensor:
    """Distort each image of a batch (N, 3, H, W), values 0..1, at random; contrast comes first or last."""
    n, device = len(images), images.device

    def draw(low: float, high: float, neutral: float) -> Tensor:
        """A factor per image, `neutral` where the step is left out."""
        value = torch.empty(n, device=device).uniform_(low, high)
        return torch.where(torch.rand(n, device=device) < SHARE, value, neutral)[:, None, None, None]

    images = images + draw(-BRIGHTNESS, BRIGHTNESS, 0.0)
    contrast = draw(*CONTRAST, 1.0)
    first = torch.rand(n, 1, 1, 1, device=device) < 0.5
    images = (images * contrast.where(first, torch.ones_like(contrast))).clamp(0, 1)
    hue, saturation, value = bgr_to_hsv(images).split(1, dim=1)  # type: ignore[no-untyped-call]
    saturation = (saturation * draw(*SATURATION, 1.0)).clamp(0, 1)
    images = hsv_to_bgr(torch.cat([hue + draw(-HUE_DEG, HUE_DEG, 0.0), saturation, value], dim=1))
    return (images * contrast.where(~first, torch.ones_like(contrast))).clamp(0, 1)
