"""Checkpoints and networks: build a network, fill it with a checkpoint's tensors, fold batch norm for inference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint import Checkpoint, ModelConfig, folded
from .hrnet import ConvNorm
from .hrnet_ocr import HrnetOcr

COUNTER = "num_batches_tracked"  # batch norm's, of no use to a trained network


def build(config: ModelConfig, initialise: bool = True) -> HrnetOcr:
    """A network with a model's dimensions; without `initialise` its weights are not set."""
    channels = config.channels_in, config.ocr_channels, config.key_channels
    return HrnetOcr(config.width, config.classes, *channels, initialise=initialise)


def load(checkpoint: Checkpoint) -> HrnetOcr:
    """The checkpoint's network, in float32 on the CPU, in evaluation mode."""
    network = build(checkpoint.config, initialise=False)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if name.endswith(COUNTER)}
    tensors = {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(tensors | counters, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """A state dict as a checkpoint holds it: float32 arrays, without batch norm's counters."""
    return {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items() if not name.endswith(COUNTER)}


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place, and return the network in evaluation mode.

    See `folded`. The folded network is for inference only.
    """
    tensors = folded(tensors_of(network.state_dict()))
    for name, block in network.named_modules():
        if isinstance(block, ConvNorm):
            weight, bias = (torch.from_numpy(tensors[f"{name}.conv.{part}"]) for part in ("weight", "bias"))
            block.conv.weight = nn.Parameter(weight, requires_grad=False)
            block.conv.bias = nn.Parameter(bias, requires_grad=False)
            block.norm = nn.Identity()
    return network.eval()
