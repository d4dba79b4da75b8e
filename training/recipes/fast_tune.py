"""The second part of `fast`: crops of almost a whole body, and batch norm as at inference, from trained weights.

The OCR head's keys and values see a handful of regions, whose statistics differ between small crops and whole slices:
weights that come straight from crops lose large organs on whole slices.
"""

from dataclasses import replace

from training.recipes.fast import RECIPE as FAST

RECIPE = replace(
    FAST,
    crop=(192, 256),
    batch=4,
    steps=4000,
    warmup_steps=300,
    learning_rate=5e-4,
    frozen_norm="all",
    organ_share=0.8,
    pancreas_odds=3.0,
)
