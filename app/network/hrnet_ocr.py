"""HRNetV2 + FCN head + OCR head, the network of "Efficient Multi-Organ Segmentation Using HRNet And OCRNet"."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .hrnet import Hrnet, he_initialise
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
