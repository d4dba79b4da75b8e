"""Batch norm in training: which norms stand still, and their statistics taken anew."""

from __future__ import annotations

import torch
from torch import nn

from app.inference.preprocess import network_input
from app.network import INPUT_STRIDE
from app.network.ocr import ObjectAttention
from training.sampling import SliceSampler

CALIBRATION_BATCHES = 50


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Every batch norm of a network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def frozen_norms(network: nn.Module, which: str) -> list[nn.BatchNorm2d]:
    """The batch norms that a recipe's `frozen_norm` names."""
    if which != "regions":
        return batch_norms(network) if which == "all" else []
    attentions = [module for module in network.modules() if isinstance(module, ObjectAttention)]
    return [norm for attention in attentions for part in (attention.key, attention.value) for norm in batch_norms(part)]


@torch.no_grad()
def calibrate(network: nn.Module, sampler: SliceSampler, batches: int = CALIBRATION_BATCHES) -> None:
    """Take batch norm's running statistics anew, as plain means over whole slices without augmentation."""
    device = next(network.parameters()).device
    norms = batch_norms(network)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    height, width = (side // INPUT_STRIDE * INPUT_STRIDE for side in sampler.canvas)
    top, left = ((side - kept) // 2 for side, kept in zip(sampler.canvas, (height, width), strict=True))
    for _ in range(batches):
        images = sampler.batch()[0][:, :, top : top + height, left : left + width]
        network(network_input(images.to(device).float()).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
