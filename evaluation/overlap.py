"""DSC of two masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """DSC of two masks of the same shape, 0..1; 1 where both are empty."""
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(reference & prediction) / total if total else 1.0
