"""HRNetV2 + FCN head + OCR head, the network of "Efficient Multi-Organ Segmentation Using HRNet And OCRNet"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .hrnet import ConvNorm, Hrnet, he_initialise
from .ocr import FcnHead, OcrHead


class HrnetOcrLogits(NamedTuple):
    """Logits of both heads, (N, classes, ceil(H / 4), ceil(W / 4)) each; `coarse` is the auxiliary FCN head's."""

    refined: Tensor
    coarse: Tensor


class HrnetOcr(nn.Module):
    """The segmentation network; weights start by He initialisation, nothing is pre-trained.

    Args:
        width: channels of the backbone's finest branch (48: the paper's 70,354,170 parameters).
        classes: segmentation classes, background included.
        channels_in: channels of the input image.
        ocr_channels: width of the OCR head's pixel features.
        key_channels: width of the OCR head's attention.
        initialise: draw weights; without it they are whatever the memory held, until they are loaded from a file.
    """

    def __init__(
        self,
        width: int = 48,
        classes: int = 5,
        channels_in: int = 3,
        ocr_channels: int = 512,
        key_channels: int = 256,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = Hrnet(width, channels_in)
        self.fcn_head = FcnHead(self.backbone.channels_out, classes)
        self.ocr_head = OcrHead(self.backbone.channels_out, classes, ocr_channels, key_channels)
        if initialise:
            he_initialise(self)

    def forward(self, image: Tensor) -> HrnetOcrLogits:
        """Segment an image (N, channels_in, H, W) with values 0..1, zero meaning air; H and W at least 32."""
        features = self.backbone(image)
        coarse = self.fcn_head(features)
        return HrnetOcrLogits(self.ocr_head(features, coarse), coarse)


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place, and return the network in evaluation mode.

    With running statistics, norm(conv(x)) is conv'(x) with weight' = weight * s and bias' = beta - mean * s,
    s = gamma / sqrt(variance + eps). The folded network is for inference only.
    """
    network.eval()
    for block in network.modules():
        if not isinstance(block, ConvNorm) or not isinstance(block.norm, nn.BatchNorm2d):
            continue
        conv, norm = block.conv, block.norm
        assert norm.running_mean is not None  # BatchNorm2d's default, as is the next
        assert norm.running_var is not None
        # float32: the product of two fp16 roundings would cost a decimal digit.
        scale = norm.weight.float() / torch.sqrt(norm.running_var.float() + norm.eps)
        bias = norm.bias.float() - norm.running_mean.float() * scale
        weight = conv.weight.float() * scale[:, None, None, None]
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        block.norm = nn.Identity()
    return network
