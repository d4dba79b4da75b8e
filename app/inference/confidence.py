"""How sure the network is of each organ, from its own probabilities, gathered as slices go through it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..organs import Organ


class Confidence:
    """The DSC that the network itself expects of its labels, organ by organ.

    With p the probability of an organ at a pixel and m its mask, where it is the likeliest label, the expected DSC is
    2 sum(p m) / (sum(p) + sum(m)): DSC with the reference replaced by its expectation. Sums run over all pixels of the
    logits that the network gave. It is not a calibrated DSC; see docs/OUTPUTS.md for how it ranks scans.

    Args:
        organs: of the model's labels after the first, the background.
    """

    def __init__(self, organs: Sequence[Organ]) -> None:
        self.organs = tuple(organs)
        self._sums = np.zeros((3, len(self.organs)))  # p m, p, m

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take the logits (K, h, w) of one slice into account."""
        flat = logits.reshape(len(logits), -1)
        largest = flat.max(axis=0)
        probabilities = np.exp(flat - largest)
        probabilities /= probabilities.sum(axis=0)
        likeliest = flat.argmax(axis=0) == np.arange(1, len(flat))[:, None]
        probabilities = probabilities[1:]
        self._sums += [
            (probabilities * likeliest).sum(axis=1, dtype=np.float64),
            probabilities.sum(axis=1, dtype=np.float64),
            likeliest.sum(axis=1),
        ]

    def of_organs(self) -> dict[Organ, float | None]:
        """The expected DSC of every organ, 0..1; None where no pixel is the organ's."""
        return {
            organ: float(2 * both / (expected + labelled)) if labelled else None
            for organ, both, expected, labelled in zip(self.organs, *self._sums, strict=True)
        }
