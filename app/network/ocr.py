"""FCN head and object-contextual (OCR) head.

Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020 (arXiv:1909.11065).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from .hrnet import Conv, ConvNorm


class FcnHead(nn.Module):
    """Coarse segmentation: a 1x1 convolution, batch norm, ReLU, then a 1x1 convolution to the classes."""

    def __init__(self, channels_in: int, classes: int) -> None:
        super().__init__()
        self.hidden = ConvNorm(channels_in, channels_in)
        self.classify = Conv(channels_in, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> logits (N, classes, H, W)."""
        logits: Tensor = self.classify(self.hidden(features))
        return logits


def gather_object_regions(features: Tensor, coarse_logits: Tensor) -> Tensor:
    """Mean feature of each object region, weighted by the softmax of its coarse logits over all pixels.

    Args:
        features: (N, C, H, W).
        coarse_logits: (N, K, H, W).

    Returns:
        (N, K, C) in the dtype of `features`.
    """
    # float32: a softmax over H*W = 16384 pixels has a mean of 6e-5, which fp16 flushes towards zero.
    regions = coarse_logits.flatten(2).float().softmax(dim=2)
    device = features.device.type
    autocasts = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if autocasts else contextlib.nullcontext():
        gathered = regions @ features.flatten(2).transpose(1, 2).float()  # float32 for the same reason
    return gathered.to(features.dtype)


class ObjectAttention(nn.Module):
    """Describe each pixel by the object regions it resembles: scaled dot-product attention over K regions."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.scale = key_channels**-0.5
        self.query = nn.Sequential(ConvNorm(channels, key_channels), ConvNorm(key_channels, key_channels))
        self.key = nn.Sequential(ConvNorm(channels, key_channels), ConvNorm(key_channels, key_channels))
        self.value = ConvNorm(channels, key_channels)
        self.out = ConvNorm(key_channels, channels)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Features (N, C, H, W) and object regions (N, K, C) -> object context (N, C, H, W)."""
        n, _, height, width = features.shape
        region_map = regions.transpose(1, 2).unsqueeze(3)  # (N, C, K, 1): regions as a column of pixels
        query = self.query(features).flatten(2).transpose(1, 2)  # (N, H*W, key)
        key = self.key(region_map).flatten(2)  # (N, key, K)
        value = self.value(region_map).flatten(2).transpose(1, 2)  # (N, K, key)
        similarity = (query @ key * self.scale).softmax(dim=2)
        context = (similarity @ value).transpose(1, 2).reshape(n, -1, height, width)
        if features.is_contiguous(memory_format=torch.channels_last):
            context = context.contiguous(memory_format=torch.channels_last)
        described: Tensor = self.out(context)
        return described


class OcrHead(nn.Module):
    """Refined segmentation: pixel features, completed by the context of their objects.

    Args:
        channels_in: channels of the backbone's features.
        classes: segmentation classes K, which are also the object regions.
        channels: width of the pixel features, 512 in the paper.
        key_channels: width of query, key and value, 256 in the paper.
    """

    def __init__(self, channels_in: int, classes: int, channels: int = 512, key_channels: int = 256) -> None:
        super().__init__()
        self.pixels = ConvNorm(channels_in, channels, kernel=3)
        self.attention = ObjectAttention(channels, key_channels)
        self.combine = ConvNorm(2 * channels, channels)
        self.classify = Conv(channels, classes, 1)

    def forward(self, features: Tensor, coarse_logits: Tensor) -> Tensor:
        """Backbone features (N, channels_in, H, W), coarse logits (N, K, H, W) -> logits (N, K, H, W)."""
        pixels = self.pixels(features)
        context = self.attention(pixels, gather_object_regions(pixels, coarse_logits))
        logits: Tensor = self.classify(self.combine(torch.cat([context, pixels], dim=1)))
        return logits
