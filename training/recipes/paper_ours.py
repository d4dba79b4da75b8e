"""The paper's network, 70,354,170 parameters, with what served `fast` best instead of the paper's own recipe.

Neighbouring slices in its three channels, crops of most of a slice at full resolution, organs up to 1.8 times as large,
focal and Dice loss, strong augmentation. From the weights of `paper_coarse`; made for a GPU.
"""

from dataclasses import replace

from training.recipes.fast import RECIPE as FAST
from training.recipes.paper import RECIPE as PAPER

RECIPE = replace(
    FAST,
    width=PAPER.width,
    ocr_channels=PAPER.ocr_channels,
    key_channels=PAPER.key_channels,
    spacing_mm=None,
    channels_in=3,
    crop=(384, 480),
    scale=(0.7, 1.8),
    batch=24,
    steps=1200,
    warmup_steps=60,
    learning_rate=8e-4,
    ema_decay=0.998,
)
