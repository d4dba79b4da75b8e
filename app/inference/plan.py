"""Which slices go through the network, and which neighbours they bring along. Only integers, no images.

    z        0   1   2   3   4   5   6   7   8   9  10  11  12      slices of 1.5 mm
    anchor   A   .   A   .   A   .   A   .   A   .   A   .   A      every 3 mm: may go through the network
    scout    S   .   .   .   .   .   .   .   S   .   .   .   S      every 12 mm, and the last slice: go first
             |------------- gap ------------|----- gap -----|

A gap lies between two neighbouring scouts. Where neither of them shows an organ, the anchors between them are spared.
The slices between two anchors get interpolated logits. A chunk is a few gaps that are worked on together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item")
ANCHOR_MM = 3.0  # logits may be interpolated between slices that far apart
SCOUT_MM = 12.0  # a flatter organ can be missed
TOLERANCE_MM = 0.01  # of distances, which headers round
CHUNK_SCOUTS = 4  # gaps in a chunk, so that there are batches


def neighbour_step(spacing_z_mm: float, neighbour_mm: float | None) -> int:
    """Distance of two neighbouring channels, in slices; 0: all channels hold the same slice.

    Slices more than twice `neighbour_mm` apart have no neighbours that the network could make sense of.
    """
    if neighbour_mm is None or spacing_z_mm > 2 * neighbour_mm + TOLERANCE_MM:
        return 0
    return max(1, round(neighbour_mm / spacing_z_mm))


def neighbour_rows(z: int, step: int, channels: int, depth: int) -> list[int]:
    """The slices in the network's input channels: z in the middle, the others `step` apart.

    Beyond either end of the scan its last slice is repeated.
    """
    return [min(max(0, z + step * i), depth - 1) for i in range(-(channels // 2), channels // 2 + 1)]


def with_neighbours(
    slices: Iterable[tuple[int, Item]], step: int, channels: int, depth: int
) -> Iterator[tuple[int, tuple[Item, ...]]]:
    """Yield every z with the slices of its `neighbour_rows`, holding only the slices that one neighbourhood spans.

    Slices come in ascending or descending order of z and leave in the same order.

    Args:
        slices: (z, slice), every z of 0..depth-1 once.
        step: distance of the neighbours, in slices.
        channels: slices that each z gets, itself included; odd.
        depth: number of slices.
    """
    held: dict[int, Item] = {}
    waiting: deque[int] = deque()
    behind = None
    for z, one in slices:
        if behind is None:
            behind = (channels // 2) * (-step if z == 0 else step)
        held[z] = one
        waiting.append(z)
        while waiting and all(row in held for row in neighbour_rows(waiting[0], step, channels, depth)):
            centre = waiting.popleft()
            yield centre, tuple(held[row] for row in neighbour_rows(centre, step, channels, depth))
            held.pop(centre + behind, None)  # no later slice looks back that far


@dataclass(frozen=True)
class Plan:
    """The anchors and scouts of a scan. They depend on the scan alone, so that its labels depend on nothing else.

    Attributes:
        depth: number of slices.
        anchor_step: distance of anchors, in slices.
        scout_step: distance of scouts, in slices.
    """

    depth: int
    anchor_step: int = 1
    scout_step: int = 1

    @classmethod
    def of(cls, depth: int, spacing_z_mm: float) -> Plan:
        """The plan for a scan of `depth` slices at this distance."""
        anchor_step = max(1, int(ANCHOR_MM / spacing_z_mm + 1e-3))
        scout_step = anchor_step * max(1, int(SCOUT_MM / (anchor_step * spacing_z_mm) + 1e-3))
        return cls(depth, anchor_step, scout_step)

    def is_anchor(self, z: int) -> bool:
        return z % self.anchor_step == 0 or z == self.depth - 1

    def is_scout(self, z: int) -> bool:
        return z % self.scout_step == 0 or z == self.depth - 1

    def gaps(self) -> list[tuple[int, int]]:
        """Every pair of neighbouring scouts, in ascending order."""
        return list(pairwise(z for z in range(self.depth) if self.is_scout(z)))

    def chunk(self, z: int) -> int:
        """The number of the chunk that a slice belongs to: a few gaps, each with its upper scout."""
        return max(0, z - 1) // (CHUNK_SCOUTS * self.scout_step)
