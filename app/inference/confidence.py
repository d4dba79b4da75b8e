"""How sure the network is of each organ, from its own probabilities, gathered as slices go through it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..organs import ORGANS, Organ


class Confidence:
    """The DSC that the network itself expects of its labels, organ by organ.

    With p the probability of an organ at a pixel and m its mask, where it is the likeliest label, the expected DSC is
    2 sum(p m) / (sum(p) + sum(m)): DSC with the reference replaced by its expectation. Sums run over all pixels of the
    logits that the network gave. It is no calibrated DSC; see docs/OUTPUTS.md for how it ranks scans.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (3, organs) float32, on the device: p m, p, m; float64 is slow on GPUs

    def add(self, logits: Tensor) -> None:
        """Take the logits (5, h, w) of one slice into account. Waits for no GPU."""
        probabilities = logits.float().softmax(0)[1:].flatten(1)  # float32: sums over many pixels
        # The largest value's index, for argmax is many times slower on a CPU along this axis.
        likeliest = logits.max(0)[1].flatten() == torch.arange(1, len(logits), device=logits.device)[:, None]
        sums = torch.stack([(probabilities * likeliest).sum(1), probabilities.sum(1), likeliest.sum(1).float()])
        self._sums = sums if self._sums is None else self._sums + sums

    def of_organs(self) -> dict[Organ, float | None]:
        """The expected DSC of every organ, 0..1; None where no pixel is the organ's."""
        if self._sums is None:
            return dict.fromkeys(ORGANS)
        both, expected, labelled = self._sums.double().cpu().tolist()
        return {
            organ: 2 * both[i] / (expected[i] + labelled[i]) if labelled[i] else None for i, organ in enumerate(ORGANS)
        }
