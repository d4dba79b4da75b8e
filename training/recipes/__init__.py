"""What a training run is made of; one module per recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from app.checkpoint import ModelConfig
from app.hounsfield import WINDOW
from app.organs import LABELS

HRNET_OCR = "hrnet-ocr"

# The paper's network and what it sees, not trained yet: its name, version and training data are given at export.
PAPER_MODEL = ModelConfig(
    name="",
    version="",
    width=48,
    labels=LABELS,
    channels_in=3,
    ocr_channels=512,
    key_channels=256,
    window_hu=WINDOW,
    spacing_mm=None,
    neighbour_mm=None,
    training_data="",
)


@dataclass(frozen=True)
class Crops:
    """What a training step is shown: which slices are drawn, and how the crops of them are changed.

    Attributes:
        size: height and width, in pixels of the network's grid.
        scale: least and largest factor by which `strong` augmentation enlarges what it crops.
        augmentation: `strong` (ours) or `paper`.
        batch: crops per step.
        organ_share: share of crops drawn from slices that hold a chosen organ.
        pancreas_odds: how often that organ is the pancreas, the hardest and smallest, relative to another one.
    """

    size: tuple[int, int] = (192, 192)
    scale: tuple[float, float] = (0.7, 1.4)
    augmentation: Literal["strong", "paper"] = "strong"
    batch: int = 8
    organ_share: float = 0.67
    pancreas_odds: float = 2.0


@dataclass(frozen=True)
class Optimiser:
    """How the weights follow the gradient, and for how long.

    Attributes:
        steps: optimisation steps.
        epochs: passes over all training slices; where given, they decide the steps.
        patience: validations without a better mean DSC after which training stops; the best one's weights are then
            the run's. None: never.
        schedule: `cosine` to zero, or the paper's `poly`: (1 - epoch / 1000)^0.9.
        warmup_steps: steps of linear warm-up.
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's, on convolution weights; with 0 it is Adam.
        ema_decay: decay of the exponential moving average of the weights; 0 keeps the weights themselves.
        frozen_norm: which batch norms use their running statistics in training too, as they will at inference: `all`,
            or those of `regions`, the OCR head's keys and values, where a batch holds only five samples per image.
    """

    steps: int = 3000
    epochs: int | None = None
    patience: int | None = None
    schedule: Literal["cosine", "poly"] = "cosine"
    warmup_steps: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.998
    frozen_norm: Literal["none", "regions", "all"] = "none"


@dataclass(frozen=True)
class Loss:
    """What is minimised: focal loss, and what is added to it.

    Attributes:
        dice_weight: weight of the soft Dice loss.
        coarse_weight: weight of the FCN head's loss (0.4 in the paper).
    """

    dice_weight: float = 1.0
    coarse_weight: float = 0.4


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learnt, except the data and the time given to it.

    Attributes:
        model: the network's dimensions, and what it is shown.
        crops: what a step is shown of it.
        optimiser: how long and how fast it learns.
        loss: what it learns.
        seed: seeds weights, sampling and augmentation.
        architecture: HRNet-OCR, or one of `training.other_networks`, which of `model` know the input channels only.
    """

    model: ModelConfig
    crops: Crops = field(default_factory=Crops)
    optimiser: Optimiser = field(default_factory=Optimiser)
    loss: Loss = field(default_factory=Loss)
    seed: int = 0
    architecture: str = HRNET_OCR
