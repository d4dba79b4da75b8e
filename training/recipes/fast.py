"""The `fast` model: width 18, a slim OCR head, 1.5 mm pixels, the slice and three neighbours on either side.

Its crops hold almost a whole body. The statistics of the OCR head's keys and values, which see five regions per slice,
are left alone: those of small crops and few slices made the head lose large organs on whole slices.
"""

from dataclasses import replace

from training.recipes import PAPER_MODEL, Crops, Optimiser, Recipe

RECIPE = Recipe(
    model=replace(
        PAPER_MODEL, width=18, ocr_channels=128, key_channels=64, channels_in=7, spacing_mm=1.5, neighbour_mm=5.0
    ),
    crops=Crops(size=(192, 256), scale=(0.7, 1.6), batch=8, organ_share=0.8, pancreas_odds=3.0),
    optimiser=Optimiser(
        steps=4000,
        warmup_steps=200,
        learning_rate=1.2e-3,
        weight_decay=2e-2,
        ema_decay=0.999,
        frozen_norm="regions",
    ),
)
