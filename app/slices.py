"""Which slices the network sees, their neighbours, and the way onto its grid and back from its logits to the scan."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import Tensor
from torch.nn import functional

Item = TypeVar("Item")
GRID_STEP = 32  # the coarsest branch has 1/32 of the resolution
ANCHOR_MM = 3.0  # logits may be interpolated between slices that far apart
SCOUT_MM = 12.0  # no organ is flatter
CHUNK_SCOUTS = 4  # stretches that are handled together, so that there are batches


def network_grid(shape_yx: Sequence[int], spacing_yx_mm: Sequence[float], target_mm: float | None) -> tuple[int, int]:
    """The (H, W) on which the network sees a slice: the multiple of 32 nearest to `target_mm` spacing.

    The slice is stretched by a few percent to fill it, which spares padding and makes the way back a single resize.

    Args:
        shape_yx: rows and columns of the scan's slice.
        spacing_yx_mm: distance of rows and of columns.
        target_mm: wanted spacing; None keeps the scan's own.
    """
    extents = [n if target_mm is None else n * mm / target_mm for n, mm in zip(shape_yx, spacing_yx_mm, strict=True)]
    height, width = (max(1, round(extent / GRID_STEP)) * GRID_STEP for extent in extents)
    return height, width


def to_grid(slices: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample slices (N, C, H, W), float32, to the network's grid; antialiased where that makes them smaller."""
    if tuple(slices.shape[2:]) == tuple(grid):
        return slices
    return functional.interpolate(slices, size=tuple(grid), mode="bilinear", align_corners=False, antialias=True)


def to_scan(logits: Tensor, shape_yx: Sequence[int]) -> Tensor:
    """The inverse of `to_grid`: logits (N, K, h, w), of any resolution -> (N, K, H, W) on the scan's pixels."""
    return functional.interpolate(logits, size=tuple(shape_yx), mode="bilinear", align_corners=False)


def neighbour_step(spacing_z_mm: float, neighbour_mm: float | None) -> int:
    """How many slices away the slices in the outer channels are; 0 where all channels hold the same slice."""
    return 0 if neighbour_mm is None else max(1, round(neighbour_mm / spacing_z_mm))


def neighbour_rows(z: int, step: int, channels: int, depth: int) -> list[int]:
    """The slices in the network's channels: z in the middle, the others `step` apart; the end ones stand in beyond."""
    return [min(max(0, z + step * i), depth - 1) for i in range(-(channels // 2), channels // 2 + 1)]


def with_neighbours(
    slices: Iterable[tuple[int, Item]], step: int, channels: int, depth: int
) -> Iterator[tuple[int, tuple[Item, ...]]]:
    """Yield (z, its `neighbour_rows`' slices), holding no more slices than lie between the outermost two.

    Slices come in ascending or descending order of z and leave in the same.

    Args:
        slices: (z, slice), every z of 0..depth-1 once.
        step: distance of the neighbours, in slices.
        channels: slices each gets, itself included; odd.
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
    """Which slices go through the network; it depends on the scan alone, so that labels depend on nothing else.

    Every `anchor_step`-th slice is an anchor; the logits of the thin slices between two are interpolated. Some anchors
    are scouts, seen first: where two neighbouring scouts show no organ, none lies between them.

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
        """The plan for slices at this distance."""
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
        """The number of the chunk that a slice belongs to: a few gaps, each with the scout above it."""
        return max(0, z - 1) // (CHUNK_SCOUTS * self.scout_step)
