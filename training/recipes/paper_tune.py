"""The second part of the paper's network: batch norm as at inference, from the first part's weights."""

from dataclasses import replace

from training.recipes.fast_tune import RECIPE as FAST_TUNE
from training.recipes.paper_ours import RECIPE as OURS

RECIPE = replace(
    OURS,
    steps=FAST_TUNE.steps,
    warmup_steps=FAST_TUNE.warmup_steps,
    learning_rate=FAST_TUNE.learning_rate,
    frozen_norm=FAST_TUNE.frozen_norm,
)
