"""The third part of the paper's network on a CPU: crops of almost the whole slice, organs up to twice as large.

After `paper_fine` the network missed the front of a three-litre spleen.
"""

from dataclasses import replace

from training.recipes.paper_fine import RECIPE as FINE

RECIPE = replace(FINE, crop=(384, 480), scale=(0.7, 2.0), learning_rate=2e-4)
