"""The last part of `fast`: large batches from trained weights; the averaged weights are kept along the way."""

from dataclasses import replace

from training.recipes.fast import RECIPE as FAST

RECIPE = replace(
    FAST,
    crops=replace(FAST.crops, batch=32),
    optimiser=replace(FAST.optimiser, steps=700, warmup_steps=40, learning_rate=8e-4, ema_decay=0.99),
)
