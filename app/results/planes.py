"""Which part and which planes of a scan a picture of its organs shows. Volumes are (Z, Y, X) in LPS order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..organs import ORGANS, bounding_box

MARGIN_MM = 35  # around the organs


def around_organs(labels: NDArray[np.uint8], spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The box of all organs and a margin on each side; the whole scan where there is none."""
    box = bounding_box(labels > 0)
    if box is None:
        return (slice(None),) * labels.ndim
    margins = [round(MARGIN_MM / mm) for mm in spacing_mm]
    return tuple(
        slice(max(0, part.start - margin), part.stop + margin) for part, margin in zip(box, margins, strict=True)
    )


def best_plane(labels: NDArray[np.uint8], axis: int) -> int:
    """The plane across an axis that shows all organs best: by the product of their areas' square roots."""
    others = tuple(a for a in range(3) if a != axis)
    areas = [np.sqrt(np.count_nonzero(labels == organ, axis=others)) for organ in ORGANS]
    return int(np.argmax(np.prod([area + 1 for area in areas], axis=0)))
