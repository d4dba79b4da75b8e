"""Remove what cannot be part of an organ: everything but its largest connected components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from ..organs import ORGANS, Organ, bounding_box, voxels_by_plane


def keep_largest(mask: NDArray[np.uint8], organs: Sequence[Organ] = ORGANS) -> dict[Organ, list[int]]:
    """Set to background, in place, all voxels of an organ outside its largest components (26-connected).

    No component crosses a plane without the organ: works on one stretch between such planes at a time, so that memory
    grows with the organs and not with the scan.

    Args:
        mask: values of `Organ`, any axis order.
        organs: to look at.

    Returns:
        Voxels of every component that there was of each organ, the largest first: `organ.components` of them are left.
    """
    counts, found = voxels_by_plane(mask.T), {}
    for organ in organs:
        edges = np.flatnonzero(np.diff(counts[:, organ] > 0, prepend=False, append=False))
        stretches = [mask[..., start:stop] for start, stop in edges.reshape(-1, 2)]
        sizes = [(size, i) for i, part in enumerate(stretches) for size in _component_sizes(part, organ)]
        sizes.sort(reverse=True)
        found[organ] = [size for size, _ in sizes]
        winners = Counter(i for _, i in sizes[: organ.components])
        for i, part in enumerate(stretches):
            view = part[bounding_box(part == organ)]
            inside = view == organ
            if winners[i]:
                inside &= cc3d.largest_k(inside, k=winners[i], connectivity=26, binary_image=True) == 0
            view[inside] = Organ.BACKGROUND
    return found


def _component_sizes(part: NDArray[np.uint8], organ: Organ) -> list[int]:
    inside = part == organ
    components = cc3d.connected_components(inside[bounding_box(inside)], connectivity=26, binary_image=True)
    sizes: list[int] = cc3d.statistics(components)["voxel_counts"][1:].tolist()
    return sizes
