"""The second part of the paper's network on a CPU: at the scan's own pixels, from the weights of `paper_coarse`.

`paper_ours` with a batch that two processes of a CPU have memory for (6 GiB each), and so a lower learning rate.
"""

from dataclasses import replace

from training.recipes.paper_ours import RECIPE as OURS

RECIPE = replace(OURS, batch=4, steps=2000, warmup_steps=20, learning_rate=3e-4, ema_decay=0.99)
