"""Which slices may share a volume, by what their headers say; and which groups may be one scan all the same.

An export of a whole hospital may give thousands of groups one series UID. So groups are compared with all others at
once, in arrays, and slices are sorted only where groups may be one volume by their ends.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .dicom_fields import IDENTITY
from .dicom_slice import Slice
from .dicom_stack import Pixels, Stack

# Directions whose cosines differ by less, and spacings that differ by a smaller share, are the same: the outermost of
# 512 pixels of 1 mm moves by half a millimetre.
SAME_SHARE = 1e-3
# Of the mean distance of a volume's slices, what every single one is at least: half, where positions were rounded (see
# `Stack.uneven`), less what the directions of two groups may differ by.
LEAST_STEP = 0.45


def groups(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices that may share a volume, in an order that depends on the headers alone.

    They are of one series, patient, study, frame of reference, image type and size, and their directions and spacings
    are the same but for rounding.
    """
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for one in slices:
        alike[one.series, one.identity, one.kind, one.shape].append(one)
    return [group for _, several in sorted(alike.items(), key=lambda item: item[0]) for group in clusters(several)]


def clusters(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices whose directions and spacings are the same as those of the first of their cluster, but for rounding.

    Values are compared and never rounded, since rounding tells values apart that are nearly the same.
    """
    ordered = sorted(slices, key=lambda one: (one.orientation.ravel().tolist(), one.spacing_mm))
    grids = _grids(ordered)
    clusters: list[list[Slice]] = []
    firsts = np.empty_like(grids)  # the first rows are those of the clusters' first slices
    for one, grid in zip(ordered, grids, strict=True):
        same = np.flatnonzero(_are_parallel(firsts[: len(clusters)], grid))
        if same.size:
            clusters[same[0]].append(one)
        else:
            firsts[len(clusters)] = grid
            clusters.append([one])
    return clusters


def _grids(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """(n, 8), directions and spacings."""
    return np.array([[*one.orientation.ravel(), *one.spacing_mm] for one in slices]).reshape(-1, 8)


def _are_parallel(grids: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,), whether directions and spacings are the same as others, but for rounding."""
    off = np.abs(grids - other)
    off[:, 6:] /= grids[:, 6:]
    same: NDArray[np.bool_] = off.max(axis=1) <= SAME_SHARE
    return same


def differences(slices: Sequence[Slice]) -> list[str]:
    """The fields that put some slices of different groups into these, those in which any two of them differ."""
    columns: list[tuple[str, list[object]]] = [("SeriesInstanceUID", [one.series for one in slices])]
    columns += [(name, [one.identity[i] for one in slices]) for i, name in enumerate(IDENTITY)]
    columns += [("ImageType", [one.kind for one in slices]), ("Rows or Columns", [one.shape for one in slices])]
    grids = _grids(slices)
    are_parallel = _are_parallel(grids.min(0, keepdims=True), grids.max(0)).all()
    fields = [name for name, values in columns if len(set(values)) > 1]
    return fields + ["ImageOrientationPatient or PixelSpacing"] * (not are_parallel)


def torn_groups(several: Sequence[Sequence[Slice]], volumes: Sequence[int]) -> dict[int, str]:
    """The groups that would be one volume with others and may be one scan, by number, each with what is wrong.

    Of those that may be of one scan, all are tried together, and any two.

    Args:
        several: groups.
        volumes: the numbers of those that are volumes by themselves.
    """
    torn: dict[int, str] = {}
    if not volumes or len(several) == 1:
        return torn
    firsts, ends = _Firsts(several), _Ends(several)
    pairs: dict[tuple[int, int], None] = {}
    seen: set[bytes] = set()
    for i in volumes:
        may_be_one = firsts.may_be_one(i)
        together = np.flatnonzero(may_be_one)
        pairs |= {(min(i, j), max(i, j)): None for j in ends.fitting(i, together).tolist()}
        if len(together) > 1 and may_be_one.tobytes() not in seen and ends.may_be_even(i, together):
            torn |= _torn(several, together.tolist())
        seen.add(may_be_one.tobytes())
    for pair in pairs:
        if not torn.keys() >= {*pair}:
            torn |= _torn(several, pair)
    return torn


def _torn(several: Sequence[Sequence[Slice]], together: Sequence[int]) -> dict[int, str]:
    """What is wrong with groups that would be one volume, by number; nothing where they would not."""
    stack = Stack.of(list(itertools.chain.from_iterable(several[i] for i in together)))
    if len(stack.firsts()) < len(stack) or not stack.as_volume(Pixels()):
        return {}
    fields = ", ".join(differences([several[i][0] for i in together]))
    problem = f"{len(stack)} slices that would be one volume differ in {fields}, or some lack it; "
    return dict.fromkeys(together, f"{problem}expected the same in all, export it again")


class _Firsts:
    """What the headers of groups' first slices say of whose they are."""

    def __init__(self, several: Sequence[Sequence[Slice]]) -> None:
        firsts = [group[0] for group in several]
        whose = [(*one.identity, one.series if one.has_uid else "") for one in firsts]
        self._grids, self._shapes = _grids(firsts), np.array([one.shape for one in firsts])
        self._whose = np.empty((len(firsts), len(IDENTITY) + 1), np.int64)  # a number per value; 0 without one
        for field, values in enumerate(zip(*whose, strict=True)):
            numbers = {value: number for number, value in enumerate(dict.fromkeys(("", *values)))}
            self._whose[:, field] = [numbers[value] for value in values]

    def may_be_one(self, i: int) -> NDArray[np.bool_]:
        """(n,), which groups may be of one scan with a group: they differ in image type, or in a field that one lacks.

        The group itself is among them.
        """
        own = self._whose[i]
        told = (self._whose == own) | (self._whose == 0) | (own == 0)
        alike: NDArray[np.bool_] = told.all(1) & (self._shapes == self._shapes[i]).all(1)
        return alike & _are_parallel(self._grids, self._grids[i])


class _Ends:
    """Where groups begin and end, which rules out most of those that are no volume together."""

    def __init__(self, several: Sequence[Sequence[Slice]]) -> None:
        stacks = [Stack.of(group) for group in several]
        self._counts = np.array([len(stack) for stack in stacks])
        self._least_mm = np.array([np.diff(stack.along).min(initial=np.inf) for stack in stacks])
        self._ends = np.array([[stack.slices[0].position, stack.slices[-1].position] for stack in stacks])  # (n, 2, 3)
        self._normals = np.array([np.cross(*group[0].orientation) for group in several])

    def fitting(self, i: int, others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some groups that may be an even stack with a group, by their ends."""
        low, high = (self._ends[others] @ self._normals[i]).T
        own_low, own_high = self._ends[i] @ self._normals[i]
        length = np.maximum(high, own_high) - np.minimum(low, own_low)
        least = LEAST_STEP * length / (self._counts[others] + self._counts[i] - 1)
        is_fitting: NDArray[np.bool_] = np.minimum(self._least_mm[others], self._least_mm[i]) >= least
        is_fitting &= (np.abs(low - own_low) >= least) & (np.abs(high - own_high) >= least) & (others != i)
        return others[is_fitting]

    def may_be_even(self, i: int, together: NDArray[np.int64]) -> bool:
        """Whether some groups, among them the `i`-th, may be an even stack, by their ends."""
        low, high = (self._ends[together] @ self._normals[i]).T
        least = LEAST_STEP * (high.max() - low.min()) / (self._counts[together].sum() - 1)
        apart = min(self._least_mm[together].min(), *(np.diff(np.sort(ends)).min() for ends in (low, high)))
        return bool(apart >= least)
