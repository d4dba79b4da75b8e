"""Remove what cannot be part of an organ: everything but its largest connected components."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray

from app.organs import Organ

COMPONENTS_KEPT = {Organ.LIVER: 1, Organ.KIDNEYS: 2, Organ.SPLEEN: 1, Organ.PANCREAS: 1}


def organ_voxels(mask: NDArray[np.uint8]) -> dict[Organ, int]:
    """Voxels of every organ, zero where it is missing; any axis order."""
    counts = np.bincount(mask.reshape(-1, order="A"), minlength=len(Organ))
    return {organ: int(counts[organ]) for organ in COMPONENTS_KEPT}


def keep_largest(mask: NDArray[np.uint8]) -> None:
    """Set to background, in place, all voxels of an organ outside its largest components (26-connected).

    Works on one organ's box at a time, so that memory grows with the organs and not with the scan.

    Args:
        mask: labels 0..4, any axis order.
    """
    if not mask.any():
        return
    boxes = cc3d.statistics(mask)["bounding_boxes"]
    for organ, kept in COMPONENTS_KEPT.items():
        box = boxes[organ] if organ < len(boxes) else None
        if box is None:
            continue
        view = mask[box]
        inside = view == organ
        largest = cc3d.largest_k(inside, k=kept, connectivity=26, binary_image=True)
        view[inside & (largest == 0)] = Organ.BACKGROUND
