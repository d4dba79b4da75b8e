"""The first part of the paper's network: on 1.5 mm pixels, grown from `fast`, where a step costs least."""

from dataclasses import replace

from training.recipes.fast import RECIPE as FAST
from training.recipes.paper_ours import RECIPE as OURS

RECIPE = replace(
    OURS,
    spacing_mm=FAST.spacing_mm,
    crop=FAST.crop,
    scale=FAST.scale,
    batch=32,
    steps=120,
    warmup_steps=30,
    learning_rate=7e-4,
    ema_decay=0.99,
)
