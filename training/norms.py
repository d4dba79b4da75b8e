"""Batch norm in training: which norms stand still."""

from __future__ import annotations

from torch import nn

from app.network.ocr import ObjectAttention


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Every batch norm of a network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def frozen_norms(network: nn.Module, which: str) -> list[nn.BatchNorm2d]:
    """The batch norms that an optimiser's `frozen_norm` names."""
    if which != "regions":
        return batch_norms(network) if which == "all" else []
    attentions = [module for module in network.modules() if isinstance(module, ObjectAttention)]
    return [norm for attention in attentions for part in (attention.key, attention.value) for norm in batch_norms(part)]
