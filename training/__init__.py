"""Training: a folder of scans and labels -> cache -> augmented batches -> weights for `app`. Not shipped."""

import os

# Before torch is imported, and with it OpenMP, which reads this once: its threads wait by sleeping and not by spinning,
# so that a run in the background does not slow down whatever else the machine does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
