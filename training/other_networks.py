"""The networks that the paper compares its own with: a ResNet or an EfficientNet under an FCN or a DeepLabV3+ head.

Encoders and DeepLabV3+ are segmentation-models-pytorch's, the FCN head is ours. Needs the extra `compare`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from app.network import HrnetOcrLogits
from app.network.hrnet import he_initialise, resize
from app.network.ocr import FcnHead
from app.organs import Organ
from app.strides import LOGITS_STRIDE
from training.norms import batch_norms

ENCODERS = ("resnet50", "efficientnet-b3")
DECODERS = ("fcn", "deeplabv3plus")
OUTPUT_STRIDE = 16  # of the encoder, which is DeepLabV3+'s default too
NORM_MOMENTUM = 0.1  # as in HRNet; with EfficientNet's own 0.01 a quarter of a statistic is its start after 140 steps
LIBRARY = "segmentation_models_pytorch"


def segmentation_models() -> ModuleType:
    """segmentation-models-pytorch, imported beside a torch without CUDA too.

    torchvision's usual wheel is compiled for CUDA. Beside a CPU torch its operators do not load, and its import fails
    when it describes two of them that nothing here calls: they are declared, and stay without code.
    """
    try:
        return importlib.import_module(LIBRARY)
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return importlib.import_module(LIBRARY)


class OneHead(nn.Module):
    """A network with a single head, answering as HRNet-OCR does: its logits stand for the coarse ones too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> HrnetOcrLogits:
        """(N, C, H, W) in 0..1 -> logits (N, classes, H / 4, W / 4), twice the same."""
        logits = self.network(image)
        return HrnetOcrLogits(logits, logits)


class Fcn(nn.Module):
    """An encoder's deepest features under the FCN head."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = FcnHead(channels, len(Organ))
        he_initialise(self.head)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes, H / 4, W / 4)."""
        logits: Tensor = self.head(self.encoder(image)[-1])
        return resize(logits, [side // LOGITS_STRIDE for side in image.shape[2:]])


def other_network(name: str, channels_in: int) -> nn.Module:
    """A network by the name ENCODER-DECODER, nothing pre-trained.

    Raises:
        ValueError: there is no such encoder or decoder.
    """
    encoder, _, decoder = name.rpartition("-")
    if encoder not in ENCODERS or decoder not in DECODERS:
        raise ValueError(f"no network '{name}'; there are {', '.join(ENCODERS)}, each with -{' and -'.join(DECODERS)}")
    library = segmentation_models()
    if decoder == "fcn":
        features = library.encoders.get_encoder(encoder, channels_in, weights=None, output_stride=OUTPUT_STRIDE)
        network = Fcn(features, features.out_channels[-1])
    else:  # its decoder ends at 1/4 of the resolution, and that is where we take its logits
        network = library.DeepLabV3Plus(
            encoder, encoder_weights=None, in_channels=channels_in, classes=len(Organ), upsampling=1
        )
    for norm in batch_norms(network):
        norm.momentum = NORM_MOMENTUM
    return OneHead(network)
