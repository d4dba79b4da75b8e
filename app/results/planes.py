"""Which part and which planes of a scan a picture of its organs shows. Volumes are (Z, Y, X) in LPS order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..organs import ORGANS

MARGIN_MM = 35  # around the organs


def around_organs(labels: NDArray[np.uint8], spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The box of all organs and a margin on each side; the whole scan where there is none."""
    if not labels.any():
        return (slice(None),) * labels.ndim
    box = []
    for axis, mm in enumerate(spacing_mm):
        rows = np.flatnonzero(labels.any(tuple(a for a in range(labels.ndim) if a != axis)))
        margin = round(MARGIN_MM / mm)
        box.append(slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1))
    return tuple(box)


def best_plane(labels: NDArray[np.uint8], axis: int) -> int:
    """The plane across an axis that shows all organs best: by the product of their areas' square roots."""
    others = tuple(a for a in range(3) if a != axis)
    areas = [np.sqrt(np.count_nonzero(labels == organ, axis=others)) for organ in ORGANS]
    return int(np.argmax(np.prod([area + 1 for area in areas], axis=0)))
