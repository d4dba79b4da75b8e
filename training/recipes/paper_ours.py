"""The paper's network, 70,354,170 parameters, with what served `fast` best instead of the paper's own recipe.

Neighbouring slices in its three channels, crops of half a body at full resolution, focal and Dice loss, strong
augmentation. `paper_tune` is its second part. Made for a GPU: no run of it is in RESULTS.md yet.
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
    crop=(320, 448),
    batch=16,
    learning_rate=1e-3,
)
