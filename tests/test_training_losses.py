"""Losses, by hand-made logits."""

from __future__ import annotations

import math

import pytest
import torch

from app.network import HrnetOcrLogits
from app.organs import IGNORE
from training.losses import dice_loss, focal_loss, segmentation_loss
from training.recipes import Loss


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])[:, :, None, None]  # p = 1/4 and 3/4
    loss = focal_loss(logits, torch.tensor([[[1]]]), gamma=2.0)
    assert loss.item() == pytest.approx(0.25**2 * -math.log(0.75), rel=1e-5)


def test_losses_are_blind_to_what_nobody_annotated() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8))
    labels[:, :4] = IGNORE
    other = logits.clone()
    other[:, :, :4] += 100 * torch.randn(2, 5, 4, 8)
    for loss in (focal_loss, dice_loss):
        assert loss(other, labels).item() == pytest.approx(loss(logits, labels).item(), rel=1e-5)
    assert focal_loss(logits, torch.full_like(labels, IGNORE)).item() == 0


def test_dice_loss_of_a_perfect_and_a_wrong_prediction() -> None:
    labels = torch.randint(0, 5, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    sure = 50 * torch.nn.functional.one_hot(labels, 5).movedim(3, 1).float()
    assert dice_loss(sure, labels).item() == pytest.approx(0, abs=1e-4)
    assert dice_loss(sure.roll(1, dims=1), labels).item() > 0.9
    total = segmentation_loss(HrnetOcrLogits(sure, sure), labels, Loss(dice_weight=1.0, coarse_weight=0.4))
    assert total.item() == pytest.approx(0, abs=1e-3)
