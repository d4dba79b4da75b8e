"""Focal loss and soft Dice loss, both blind to voxels labelled 255."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from app.network import HrnetOcrLogits
from app.organs import IGNORE
from training.recipes import Loss


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over annotated pixels of (1 - p)^gamma * -log p, p the probability of the reference class.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.

    Args:
        logits: (N, K, H, W) float32.
        labels: (N, H, W) int64, 255 where not annotated.
        gamma: 2 in the source.
    """
    cross_entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    focal = (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy
    return focal.sum() / (labels != IGNORE).sum().clamp_min(1)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice, mean over the organs (not background); the batch counts as one image.

    An organ that the batch does not hold costs what is predicted of it: 1 - 1 / (1 + its summed probabilities).
    """
    known = labels != IGNORE
    probabilities = logits.softmax(1) * known[:, None]
    reference = functional.one_hot(labels.masked_fill(~known, 0), logits.shape[1]).movedim(3, 1) * known[:, None]
    over = (0, 2, 3)
    overlap, volume = (probabilities * reference).sum(over), (probabilities + reference).sum(over)
    dice = (2 * overlap + 1) / (volume + 1)
    return 1 - dice[1:].mean()


def segmentation_loss(logits: HrnetOcrLogits, labels: Tensor, weights: Loss) -> Tensor:
    """Focal + Dice of the refined logits plus `coarse_weight` times that of the coarse ones, at the labels' size."""
    total = torch.zeros((), device=labels.device)
    for head, weight in ((logits.refined, 1.0), (logits.coarse, weights.coarse_weight)):
        if not weight:
            continue
        # float32: sums over some 10^5 pixels do not fit 16 bits.
        full = functional.interpolate(head.float(), labels.shape[1:], mode="bilinear", align_corners=False)
        total = total + weight * (focal_loss(full, labels) + weights.dice_weight * dice_loss(full, labels))
    return total
