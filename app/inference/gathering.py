"""What outputs need of a scan besides its mask, gathered while its slices pass by, so that nothing is read twice.

Memory grows with the organs and not with the scan: of each slice the values under labels are kept, and of those near
organs a small copy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import hounsfield
from ..organs import Organ
from ..volumes import Geometry

REDUCED_MM = 1.5  # pixels of the small copy are about as large
NEAR_MM = 60.0  # slices of the small copy lie at most so far from a slice with an organ


@dataclass(frozen=True)
class Reduced:
    """A small copy of the scan around its organs.

    Attributes:
        hounsfield: (Z, Y, X) int16 in LPS order, block means.
        labels: likewise, uint8, of the blocks' middles.
        affine: (4, 4), (x, y, z) of these -> patient RAS, mm.
        spacing_zyx_mm: distance of slices, rows and columns.
    """

    hounsfield: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing_zyx_mm: tuple[float, float, float]


class Gathering:
    """Is shown every slice of one scan, and its labels when they are known; a `Witness` of the loop over the slices."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        dz, dy, dx = geometry.spacing_zyx_mm
        # Slices per slice, rows per row and columns per column of the small copy.
        self._steps = max(1, round(REDUCED_MM / dz)), max(1, round(REDUCED_MM / dy)), max(1, round(REDUCED_MM / dx))
        self._waiting: dict[int, NDArray[np.int16]] = {}  # slices whose labels are not known yet
        self._index: dict[int, NDArray[np.int32]] = {}  # where a slice has labels, in the flat slice
        self._values: dict[int, NDArray[np.int16]] = {}  # its HU there
        self._small: dict[int, NDArray[np.int16]] = {}  # slices of the small copy near organs
        self._recent: deque[tuple[int, NDArray[np.int16]]] = deque()  # others that an organ may still come near
        self._last_organ: int | None = None

    def see(self, z: int, plane: NDArray[np.int16]) -> None:
        """Take a slice (Y, X) of HU."""
        self._waiting[z] = plane

    def labelled(self, z: int, labels: NDArray[np.uint8]) -> None:
        """Take the labels (Y, X) of a slice that was seen; only the first time counts."""
        plane = self._waiting.pop(z, None)
        if plane is None:
            return
        index = np.flatnonzero(labels).astype(np.int32)
        if len(index):
            self._index[z], self._values[z] = index, plane.ravel()[index]
        self._keep_small(z, plane, has_organ=bool(len(index)))

    def _keep_small(self, z: int, plane: NDArray[np.int16], has_organ: bool) -> None:
        near = NEAR_MM / self.geometry.spacing_zyx_mm[0]
        if z % self._steps[0] == 0:
            self._recent.append((z, _block_means(plane, self._steps[1:])))
        if has_organ:
            self._last_organ = z
        if self._last_organ is not None and abs(z - self._last_organ) <= near:
            self._small.update(self._recent)
            self._recent.clear()
        while self._recent and abs(self._recent[0][0] - z) > near:
            self._recent.popleft()

    def finish(self, labels_zyx: NDArray[np.uint8]) -> None:
        """Take the labels of all slices that are left."""
        for z in sorted(self._waiting):
            self.labelled(z, labels_zyx[z])

    def hounsfield(
        self, labels_zyx: NDArray[np.uint8], organ: Organ, columns: tuple[int, int] | None = None
    ) -> NDArray[np.int16]:
        """The values of an organ, in no particular order.

        Args:
            labels_zyx: final labels (Z, Y, X); no label may be where there was none when the slices passed by.
            organ: which one.
            columns: first one, and the one after the last; None: all.
        """
        width = self.geometry.shape_zyx[2]
        first, end = columns or (0, width)
        parts = []
        for z, index in self._index.items():
            column = index % width
            inside = (labels_zyx[z].ravel()[index] == organ) & (column >= first) & (column < end)
            parts.append(self._values[z][inside])
        return np.concatenate(parts) if parts else np.empty(0, np.int16)

    def column_of(self, column: float) -> float:
        """Where a column of the small copy, or a place between two, lies in the scan."""
        return (column + 0.5) * self._steps[2] - 0.5

    def reduced(self, labels_zyx: NDArray[np.uint8]) -> Reduced | None:
        """The small copy and the final labels (Z, Y, X) on it; None where it shows no organ."""
        if not self._small:
            return None
        first, last = min(self._small), max(self._small)
        z_step, *yx_steps = self._steps
        shape = next(iter(self._small.values())).shape
        planes = [self._small.get(z, np.full(shape, hounsfield.AIR, np.int16)) for z in range(first, last + 1, z_step)]
        starts = (first, *(step // 2 for step in yx_steps))
        rows, columns = (slice(starts[i], starts[i] + self._steps[i] * shape[i - 1], self._steps[i]) for i in (1, 2))
        labels = labels_zyx[first : last + 1 : z_step, rows, columns]
        if not labels.any():
            return None
        middles = (first, *((step - 1) / 2 for step in yx_steps))  # of the first block
        affine = self.geometry.oriented_affine @ np.diag([*self._steps[::-1], 1.0])
        affine[:, 3] = self.geometry.oriented_affine @ np.array([*middles[::-1], 1.0])
        spacing = self.geometry.spacing_zyx_mm
        z_mm, y_mm, x_mm = (step * mm for step, mm in zip(self._steps, spacing, strict=True))
        return Reduced(np.stack(planes), np.ascontiguousarray(labels), affine, (z_mm, y_mm, x_mm))


def _block_means(plane: NDArray[np.int16], steps: tuple[int, ...]) -> NDArray[np.int16]:
    """A slice made smaller by whole numbers; what is left at its end is cut off, unless it is all there is."""
    rows, columns = (max(1, n // step) for n, step in zip(plane.shape, steps, strict=True))
    high, wide = (min(n, step) for n, step in zip(plane.shape, steps, strict=True))
    blocks = plane[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    means: NDArray[np.int16] = np.rint(blocks.mean((1, 3), dtype=np.float32)).astype(np.int16)
    return means
