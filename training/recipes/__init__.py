"""What a training run is made of; one module per recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.hounsfield import WINDOW

HRNET_OCR = "hrnet-ocr"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learnt, except the data and the time given to it.

    Attributes:
        width: backbone width.
        ocr_channels: width of the OCR head.
        key_channels: width of its attention.
        spacing_mm: in-plane spacing of the network's grid; None keeps the scan's, but no more than 1 mm.
        neighbour_mm: distance of the slices in neighbouring input channels; None repeats the slice.
        channels_in: input channels, odd: the slice and its neighbours on either side.
        window_hu: Hounsfield window mapped to the input range.
        augmentation: `strong` (ours) or `paper`.
        crop: height and width of the training crop, pixels of the grid.
        scale: least and largest factor by which `strong` augmentation enlarges what it crops.
        batch: crops per step.
        steps: optimisation steps.
        epochs: passes over all training slices; where given, they decide the steps.
        schedule: `cosine` to zero, or the paper's `poly`: (1 - epoch / 1000)^0.9.
        warmup_steps: steps of linear warm-up.
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's, on convolution weights; with 0 it is Adam.
        dice_weight: weight of the soft Dice loss beside focal loss.
        coarse_weight: weight of the FCN head's loss (0.4 in the paper).
        ema_decay: decay of the exponential moving average of the weights; 0 keeps the weights themselves.
        frozen_norm: which batch norms use their running statistics in training too, as they will at inference: `all`,
            or those of `regions`, the OCR head's keys and values, where a batch holds only five samples per image.
        patience: validations without a better mean DSC after which training stops; the best one's weights are then
            the run's. None: never.
        organ_share: share of crops drawn from slices that hold a chosen organ.
        pancreas_odds: how often that organ is the pancreas, the hardest and smallest, relative to another one.
        seed: seeds weights, sampling and augmentation.
        architecture: HRNet-OCR, or one of `training.other_networks`, which know nothing of width and OCR channels.
    """

    width: int
    ocr_channels: int
    key_channels: int
    spacing_mm: float | None
    neighbour_mm: float | None
    channels_in: int = 3
    window_hu: tuple[float, float] = WINDOW
    augmentation: Literal["strong", "paper"] = "strong"
    crop: tuple[int, int] = (192, 192)
    scale: tuple[float, float] = (0.7, 1.4)
    batch: int = 8
    steps: int = 3000
    epochs: int | None = None
    schedule: Literal["cosine", "poly"] = "cosine"
    warmup_steps: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dice_weight: float = 1.0
    coarse_weight: float = 0.4
    ema_decay: float = 0.998
    frozen_norm: Literal["none", "regions", "all"] = "none"
    patience: int | None = None
    organ_share: float = 0.67
    pancreas_odds: float = 2.0
    seed: int = 0
    architecture: str = HRNET_OCR
