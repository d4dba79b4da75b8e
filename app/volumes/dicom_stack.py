"""Slices that may share a volume, in order along their common normal, and what makes a volume of them.

A volume has one slice per place, in even steps along the normal, on one line (a sheared one, if the gantry was tilted).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .dicom_slice import Slice, stored_pixels

SAME_MM = 0.01  # positions nearer than this are one place
ONE_PLACE_MM = 0.3  # no abdominal scan is thinner: what lies nearer together was scanned again and again at one place
GAP_SHARE = 0.05  # by which a distance of slices may differ from the others
# Positions rounded to 0.1 mm are off by up to 0.05 mm, and so are the ends of the line that they are compared with.
ROUNDED_MM = 0.1 + 1e-6
WHOLE = 1e-4  # by which a number may differ from a whole one
LINE_MM = 1.0  # by which a slice may lie beside the line that the others' corners form


class Pixels:
    """Whether slices at one place are copies of each other; every pair is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[pathlib.Path, int | None], ...], bool] = {}

    def same(self, one: Slice, other: Slice) -> bool:
        """Whether two slices have the same pixels; damaged ones are not copies."""
        pair = (one.path, one.frame), (other.path, other.frame)
        if pair not in self._known:
            self._known[pair] = pair[0] == pair[1] or _same_pixels(one, other)
        return self._known[pair]


def _same_pixels(one: Slice, other: Slice) -> bool:
    try:
        return bool(np.array_equal(stored_pixels(one), stored_pixels(other)))
    except Exception:  # a decoder raises whatever damaged pixels make of it; the case's own line will say so
        return False


def _are_rounded(positions: NDArray[np.float64]) -> bool:
    """Whether positions (n, 3) are whole tenths of a millimetre, along the axes along which they differ."""
    tenths = 10 * positions[:, np.ptp(positions, axis=0) > 0]
    return bool(np.abs(tenths - np.rint(tenths)).max(initial=0) < WHOLE)


@dataclass(frozen=True)
class Stack:
    """Slices of one orientation and size, in order of their place.

    Attributes:
        slices: one or more.
        along: (n,) their places along the normal, mm.
        rounded_mm: by how much a place may be off, because positions were rounded to 0.1 mm; 0 if they were not.
        copies: slices that were left out because another with the same pixels is at their place.
    """

    slices: tuple[Slice, ...]
    along: NDArray[np.float64]
    rounded_mm: float = 0.0
    copies: int = 0

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Stack:
        """Sort slices by their places along the mean of their normals."""
        directions = np.mean([one.orientation for one in slices], axis=0)
        normal = np.cross(*directions)
        normal /= np.linalg.norm(normal)
        positions = np.array([one.position for one in slices])
        along = positions @ normal
        order = sorted(range(len(slices)), key=lambda i: (along[i], slices[i].marks, slices[i].path, slices[i].frame))
        rounded_mm = ROUNDED_MM * float(np.abs(normal).sum()) if _are_rounded(positions) else 0.0
        return cls(tuple(slices[i] for i in order), along[order], rounded_mm)

    def __len__(self) -> int:
        return len(self.slices)

    def pick(self, index: NDArray[np.integer]) -> Stack:
        """Some of the slices, by their numbers in ascending order."""
        return replace(self, slices=tuple(self.slices[i] for i in index), along=self.along[index])

    @property
    def at_one_place(self) -> bool:
        """Whether all slices show one place."""
        return bool(self.along[-1] - self.along[0] < ONE_PLACE_MM)

    def firsts(self) -> NDArray[np.int64]:
        """The number of the first slice at every place."""
        starts = [0]
        for i in np.flatnonzero(np.diff(self.along) >= SAME_MM) + 1:
            starts.append(int(i))
        return np.array(starts)

    @property
    def at_each_place(self) -> int:
        """How many slices there are where there are most."""
        return int(np.diff([*self.firsts(), len(self)]).max())

    def without_copies(self, pixels: Pixels) -> Stack | None:
        """One slice per place; None if slices at one place differ."""
        firsts = self.firsts()
        if len(firsts) == len(self):
            return self
        for first, end in zip(firsts, [*firsts[1:], len(self)], strict=True):
            if not all(pixels.same(self.slices[first], other) for other in self.slices[first + 1 : end]):
                return None
        return replace(self.pick(firsts), copies=len(self) - len(firsts))

    def as_volume(self, pixels: Pixels) -> Stack | None:
        """One slice per place, if they are a volume; None if they are not."""
        places = self.pick(self.firsts())
        if places.at_one_place or places.uneven().size or places.is_shifted:
            return None
        return self.without_copies(pixels)

    @property
    def is_shifted(self) -> bool:
        """Whether some corners lie beside the line from the first to the last one."""
        corners = np.array([one.position for one in self.slices])
        share = (self.along - self.along[0]) / (self.along[-1] - self.along[0])
        line = corners[0] + share[:, None] * (corners[-1] - corners[0])
        return bool(np.abs(corners - line).max() > LINE_MM)

    @property
    def usual_mm(self) -> float:
        """The usual distance of neighbouring slices: the mean of those that are near the median."""
        gaps = np.diff(self.along)
        median = float(np.quantile(gaps, 0.5, method="lower"))
        return float(gaps[np.abs(gaps - median) <= max(GAP_SHARE * median, self.rounded_mm)].mean())

    def uneven(self) -> NDArray[np.int64]:
        """The slices after which the distance is not the usual one, beyond what rounding explains."""
        gaps, usual = np.diff(self.along), self.usual_mm
        even, step = np.linspace(self.along[0], self.along[-1], len(self), retstep=True)
        if np.abs(self.along - even).max() <= self.rounded_mm and np.abs(gaps - step).max() < step / 2:
            return np.empty(0, np.int64)
        odd = np.flatnonzero(np.abs(gaps - usual) > max(GAP_SHARE * usual, self.rounded_mm))
        return odd if odd.size else np.flatnonzero(np.abs(gaps - usual) > GAP_SHARE * usual)

    @property
    def lacks_slices(self) -> bool:
        """Whether all slices lie at places of one even stack, some of which are empty."""
        length = self.along[-1] - self.along[0]
        step = length / round(length / self.usual_mm)
        places = np.rint((self.along - self.along[0]) / step)
        off_mm = np.abs(self.along - self.along[0] - places * step)
        is_near = off_mm.max() <= max(GAP_SHARE * step, self.rounded_mm)
        return not self.is_shifted and bool(is_near and np.diff(places).min() >= 1)

    @property
    def interleaves(self) -> bool:
        """Whether the slices are two or three even stacks that interleave, each shifted against the others."""
        stacks = ([self.pick(np.arange(i, len(self), n)) for i in range(n)] for n in (2, 3) if len(self) >= 3 * n)
        return any(not any(stack.uneven().size for stack in parts) for parts in stacks)

    def gaps_line(self) -> str:
        """Where the distance is not the usual one."""
        odd = self.uneven()
        where = ", ".join(f"{self.along[i]:.1f} to {self.along[i + 1]:.1f}" for i in odd[:3])
        where += " ..." if odd.size > 3 else ""
        return f"slices are {self.usual_mm:.4g} mm apart, but not from {where} mm along their normal (gaps: {odd.size})"

    def even_places(self) -> tuple[float, ...]:
        """Places at the usual distance among slices that are not; those near a slice are its own."""
        usual = self.usual_mm
        count = 1 + round(float(self.along[-1] - self.along[0]) / usual)
        places = np.interp(np.linspace(self.along[0], self.along[-1], count), self.along, np.arange(len(self)))
        nearest = np.rint(places)
        near = max(GAP_SHARE, self.rounded_mm / usual)
        return tuple(np.where(np.abs(places - nearest) < near, nearest, places).tolist())
