"""Whether a scan's values are Hounsfield units, judged by the body's values and not by single voxels; and all there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import hounsfield

STRIDE = 4  # every fourth row and column is enough
LEAST_FAT = 0.005  # of the body's voxels; even thin patients have several times as much
BRIGHT_SHARE = 0.002  # of the body's voxels; at least as many are brighter than `hounsfield.BRIGHT`
MOST_DENSE = 0.2  # of the body's voxels are denser than `hounsfield.DENSE`; in 56 scans it was 0.013
OFFSET_HU = 1024  # of scanners' stored values
LEAST_SOFT_TISSUE = 0.2  # of the body's voxels
FEWEST = 1000  # voxels of a body that can be judged


class Intensities:
    """A histogram of a scan's values, gathered slice by slice."""

    def __init__(self) -> None:
        self._lowest = int(np.iinfo(np.int16).min)
        self._counts = np.zeros(1 << 16, np.int64)
        self._has_content = False  # whether a slice had more than one value
        self._flat_waiting = self._flat = 0  # slices of one value: since the last one with content; that are a doubt

    def add(self, plane: NDArray[np.int16]) -> None:
        """Count a slice's values."""
        sample = plane[::STRIDE, ::STRIDE].astype(np.int64).ravel() - self._lowest
        self._counts += np.bincount(sample, minlength=len(self._counts))
        if np.ptp(sample):
            self._has_content, self._flat, self._flat_waiting = True, self._flat + self._flat_waiting, 0
        elif plane[0, 0] > hounsfield.BODY:
            self._flat += 1
        elif self._has_content:
            self._flat_waiting += 1

    def _count(self, low: int, high: int | None = None) -> int:
        """Values from `low` up to, not including, `high`."""
        stop = None if high is None else high - self._lowest
        return int(self._counts[low - self._lowest : stop].sum())

    def _percentile(self, low: int, percent: float) -> int:
        """A percentile of the values from `low` up."""
        part = self._counts[low - self._lowest :]
        return low + int(np.searchsorted(np.cumsum(part), part.sum() * percent / 100))

    def _share(self, low: int, high: int | None = None, *, offset: int) -> float:
        """Of a body's voxels, those from `low` up to, not including, `high`, in values less an offset."""
        body = self._count(hounsfield.BODY + offset)
        return self._count(low + offset, None if high is None else high + offset) / max(body, 1)

    def _may_be_hounsfield(self, offset: int = 0) -> bool:
        """Whether the values, less an offset, show the fat, the bright and the dense voxels of a body."""
        return (
            self._share(*hounsfield.FAT, offset=offset) >= LEAST_FAT
            and self._share(hounsfield.BRIGHT, offset=offset) >= BRIGHT_SHARE
            and self._share(hounsfield.DENSE, offset=offset) <= MOST_DENSE
        )

    def _lacks_offset(self) -> bool:
        """Whether they are Hounsfield units plus the usual offset, and not the noise of inverted air near 1000."""
        return (
            self._may_be_hounsfield(OFFSET_HU)
            and self._share(*hounsfield.SOFT_TISSUE, offset=OFFSET_HU) >= LEAST_SOFT_TISSUE
            and self._share(hounsfield.BONE, offset=OFFSET_HU) >= BRIGHT_SHARE
        )

    def doubts(self) -> str | None:
        """A sentence for the user if these are not Hounsfield units, or not all there; None if they may be."""
        return "; ".join(doubt for doubt in (self._no_hounsfield(), self._no_content()) if doubt) or None

    def _no_content(self) -> str | None:
        """Slices of one value that is the body's, or between others: what a copy left that stopped, or a resampling."""
        if not (self._flat and self._has_content):
            return None
        return (
            f"{self._flat} slices have one value throughout; copy the file again if it was copied, or give the scan "
            "before it was resampled"
        )

    def _no_hounsfield(self) -> str | None:
        """What tells that these are no Hounsfield units."""
        if self._count(hounsfield.BODY) < FEWEST or self._may_be_hounsfield():
            return None
        if self._lacks_offset():
            remedy = f"subtract {OFFSET_HU}, the offset that was not applied"
        else:
            remedy = "check the scan's rescaling: slope, intercept, and sign (inverted values make air the brightest)"
        low, middle, high = (self._percentile(hounsfield.PADDING, percent) for percent in (1, 50, 99))
        return (
            f"intensities (percentiles 1, 50, 99: {low}, {middle}, {high}) do not look like Hounsfield units "
            f"(air near -1000, fat near -100, bone above 300); {remedy}; the mask may be wrong"
        )
