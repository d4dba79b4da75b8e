"""The end of `fast`: larger crops and batch norm as at inference, from the weights of a `fast` run (`--start`).

The OCR head's keys and values see a handful of regions, whose statistics differ between small crops and whole slices:
weights that come straight from crops lose large organs on whole slices.
"""

from dataclasses import replace

from training.recipes.fast import RECIPE as FAST

RECIPE = replace(FAST, crop=256, batch=4, steps=400, warmup_steps=20, learning_rate=4e-4, frozen_norm=True)
