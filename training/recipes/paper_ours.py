"""The paper's network, 70,354,170 parameters, with what served `fast` best instead of the paper's own recipe.

Neighbouring slices in its three channels, crops of most of a slice in pixels of 1 mm, organs up to 1.8 times as large,
focal and Dice loss, strong augmentation. From the weights of `paper_coarse`; made for a GPU.
"""

from dataclasses import replace

from training.recipes import PAPER_MODEL
from training.recipes.fast import RECIPE as FAST

RECIPE = replace(
    FAST,
    model=replace(PAPER_MODEL, spacing_mm=1.0, neighbour_mm=FAST.model.neighbour_mm),
    crops=replace(FAST.crops, size=(384, 480), scale=(0.7, 1.8), batch=24),
    optimiser=replace(FAST.optimiser, steps=1200, warmup_steps=60, learning_rate=8e-4, ema_decay=0.998),
)
