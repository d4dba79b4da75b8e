"""The last part of `paper` where a step is dear: from trained weights, on smaller crops.

They still hold most of a body, 256 x 320 pixels of 0.6 to 1.7 mm. Batches are too small for their statistics to be of
use, so all batch norms keep theirs.
"""

from dataclasses import replace

from training.recipes.paper_ours import RECIPE as OURS

RECIPE = replace(
    OURS,
    crops=replace(OURS.crops, size=(256, 320), scale=(0.6, 1.6), batch=8),
    optimiser=replace(
        OURS.optimiser, steps=1000, warmup_steps=20, learning_rate=3e-4, ema_decay=0.99, frozen_norm="all"
    ),
)
