"""The first part of the paper's network: on 1.5 mm pixels, grown from `fast`, where a step costs least."""

from dataclasses import replace

from training.recipes.fast import RECIPE as FAST
from training.recipes.paper_ours import RECIPE as OURS

RECIPE = replace(
    OURS,
    model=replace(OURS.model, spacing_mm=FAST.model.spacing_mm),
    crops=replace(OURS.crops, size=FAST.crops.size, scale=FAST.crops.scale, batch=32),
    optimiser=replace(OURS.optimiser, steps=120, warmup_steps=30, learning_rate=7e-4, ema_decay=0.99),
)
