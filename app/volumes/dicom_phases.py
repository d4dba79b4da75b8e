"""Volumes that share a series: which field of their headers tells them apart.

A series is divided only where it has to be: where it is not a volume as it stands, or where it is one only because two
sweeps over the same range interleave. A division is judged by what comes out: every part must be a volume, and all
parts must cover the same range. So what varies innocently divides nothing: a time per slice gives parts of one slice,
an acquisition number per couch position gives parts that lie side by side, and neither hides a missing slice. Where two
fields divide the same slices differently, nobody can say which is right, and the series is refused.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dicom_fields import MARK_NAMES, TIMES
from .dicom_stack import ONE_PLACE_MM, Pixels, Stack

Labels = NDArray[np.int64]  # (n,) the part that each slice of a stack belongs to, from 0

SHARED_RANGE = 0.5  # of the shorter of two parts; the other part covers as much of it if both are sweeps over one range
FEWEST_EVEN = 3  # slices whose even steps are not a coincidence
FEWEST_IN_ORDER = 5  # slices that lie in order of a number by no accident
SWEEPS = range(2, 17)  # numbers of sweeps that are tried, besides the number of slices at one place
MOST_PAIRED = 40  # cuts that are tried in pairs
LONG_PAUSE = 5.0  # times any inside a sweep: between two sweeps
LONG_STEP = 2.0  # times the usual one: between the end of a sweep and the beginning of the next
DATE_TIMES = {*TIMES, "AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime"}


@dataclass(frozen=True)
class Division:
    """What a stack was divided into.

    Attributes:
        parts: in order of the field that tells them apart; the stack itself where it was not divided.
        by: that field; empty where it was not divided.
        problem: why it cannot be divided; None where there is no doubt.
    """

    parts: tuple[Stack, ...]
    by: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class _Cut:
    """One way to divide a stack.

    Attributes:
        by: the field, or two.
        labels: the part of every slice.
        is_sure: whether the parts are the field's values themselves, or long pauses lie between them; else one sweep
            seems to end where its slices, in order of the field, reach the end of the range.
        by_absence: whether the parts are the slices that have the field and those that lack it.
    """

    by: str
    labels: Labels
    is_sure: bool = True
    by_absence: bool = False

    @property
    def count(self) -> int:
        """How many parts there are."""
        return int(self.labels.max()) + 1


def divide(stack: Stack, pixels: Pixels) -> Division:
    """Divide a stack if it has to be; see the top of this file."""
    volume = stack.as_volume(pixels)
    is_volume, stack = volume is not None, volume or stack
    cuts = _distinct(_cuts(stack))
    sure = [cut for cut in cuts if cut.is_sure]
    fitting = _fitting(stack, sure, is_volume, pixels) or _fitting(stack, cuts, is_volume, pixels)
    if not fitting and not is_volume:
        pairs = itertools.combinations(sure[:MOST_PAIRED], 2)
        fitting = _fitting(stack, _distinct(itertools.starmap(_both, pairs)), is_volume, pixels)
        fitting = fitting or _fitting(stack, sure, is_volume, pixels, may_lack=True)
    if not fitting:
        return Division((stack,))
    finest, parts = max(fitting, key=lambda found: found[0].count)
    for cut, _ in fitting:
        if _both(finest, cut).count > finest.count:
            return Division((stack,), problem=f"{finest.by} and {cut.by} divide its slices differently")
    return Division(parts, finest.by)


def _fitting(
    stack: Stack, cuts: Iterable[_Cut], is_volume: bool, pixels: Pixels, may_lack: bool = False
) -> list[tuple[_Cut, tuple[Stack, ...]]]:
    """The cuts that give volumes, with their parts; volumes that may lack slices, if that is said."""
    fitting = []
    for cut in cuts:
        if _may_be_sweeps(stack, cut, is_volume):
            parts = tuple(stack.pick(np.flatnonzero(cut.labels == part)) for part in range(cut.count))
            if _are_volumes(parts, pixels, may_lack):
                fitting.append((cut, parts))
    return fitting


def _may_be_sweeps(stack: Stack, cut: _Cut, is_volume: bool) -> bool:
    """Whether the parts are sweeps over one range, beside images of one place, as far as their ends tell."""
    sizes = np.bincount(cut.labels)
    low, high = np.full(cut.count, np.inf), np.full(cut.count, -np.inf)
    np.minimum.at(low, cut.labels, stack.along)
    np.maximum.at(high, cut.labels, stack.along)
    lengths = high - low
    is_long = lengths >= ONE_PLACE_MM
    if not is_long.any() or not (is_long.all() or (cut.is_sure and not is_volume)):
        return False
    # A volume of six slices may lack a field in every second one by accident.
    fewest = FEWEST_EVEN if (cut.is_sure and not cut.by_absence) or not is_volume else FEWEST_IN_ORDER
    if sizes[is_long].min() < (2 if cut.is_sure and stack.at_each_place > 1 else fewest):
        return False
    if not cut.is_sure and lengths.min() < SHARED_RANGE * (stack.along[-1] - stack.along[0]):
        return False
    low_long, high_long, lengths = low[is_long], high[is_long], lengths[is_long]
    if not is_long.all():
        lowest, highest = low[~is_long].min(), high[~is_long].max()
        # A lone slice beyond the others may be the end of one scan with a hole.
        is_inside = ((low_long <= lowest) & (highest <= high_long)).any()
        if highest - lowest >= ONE_PLACE_MM or (sizes[~is_long].sum() == 1 and not is_inside):
            return False
    shared = np.minimum.outer(high_long, high_long) - np.maximum.outer(low_long, low_long)
    return bool((shared >= SHARED_RANGE * np.minimum.outer(lengths, lengths)).all())


def _are_volumes(parts: Sequence[Stack], pixels: Pixels, may_lack: bool) -> bool:
    """Whether all parts are volumes, beside images of one place; some may lack slices of their own, if that is said."""
    long = [part for part in parts if not part.at_one_place]
    volumes = [part for part in long if part.as_volume(pixels)]
    if len(volumes) == len(long) or not (may_lack and volumes):
        return len(volumes) == len(long)
    # All cover the range of the whole, or they are slices at two distances, each over a range of its own.
    longest = max(part.along[-1] - part.along[0] for part in long)
    return all(
        part.along[-1] - part.along[0] >= SHARED_RANGE * longest
        and (part.as_volume(pixels) or ((single := part.without_copies(pixels)) and single.lacks_slices))
        for part in long
    )


def _distinct(cuts: Iterable[_Cut]) -> list[_Cut]:
    """One cut of those that come to the same parts."""
    found: dict[bytes, _Cut] = {}
    for cut in cuts:
        if 1 < cut.count <= len(cut.labels) // 2:
            _, first, inverse = np.unique(cut.labels, return_index=True, return_inverse=True)
            by_appearance = np.argsort(np.argsort(first))[inverse]
            found.setdefault(by_appearance.tobytes(), cut)
    return list(found.values())


def _both(one: _Cut, other: _Cut) -> _Cut:
    """The parts that two cuts come to together."""
    labels = np.unique(one.labels * other.count + other.labels, return_inverse=True)[1]
    return _Cut(f"{one.by} with {other.by}", labels, one.is_sure and other.is_sure)


def _cuts(stack: Stack) -> Iterator[_Cut]:
    """Every way in which a field of the headers could divide a stack; then the folders and files that slices lie in."""
    columns = zip(*(one.marks for one in stack.slices), strict=True)
    fields = [(name, column) for name, column in zip(MARK_NAMES, columns, strict=True) if len(set(column)) > 1]
    for name, column in fields:
        yield _Cut(name, _ranks(name, column))
        if "" in column:
            yield _Cut(name, np.array([value != "" for value in column], np.int64), by_absence=True)
    for name, column in fields:
        if (values := _numbers(name, column)) is not None:
            yield from (_Cut(name, labels, is_sure) for labels, is_sure in _sweeps(values, stack))
    yield _Cut("the folder", _ranks("", [str(one.path.parent) for one in stack.slices]))
    yield _Cut("the file", _ranks("", [str(one.path) for one in stack.slices]))


def _ranks(name: str, column: Sequence[str]) -> Labels:
    """The rank of each value; in order of their numbers if they are numbers."""
    numbers = _numbers(name, column)
    return np.unique(column if numbers is None else numbers, return_inverse=True)[1]


def _numbers(name: str, column: Sequence[str]) -> NDArray[np.float64] | None:
    """Values as numbers, times as seconds; None where some are neither."""
    try:
        return np.array([_seconds(value) if name in DATE_TIMES else float(value) for value in column])
    except (ValueError, OverflowError):
        return None


def _seconds(date_time: str) -> float:
    """YYYYMMDDHHMMSS.FFFFFF, which may end early (PS3.5, 6.2, DT) -> seconds."""
    digits, _, fraction = date_time.partition("&")[0].partition("+")[0].partition(".")
    parts = [int(digits[i : i + 2] or 0) for i in range(8, 14, 2)]
    day = datetime.date(int(digits[:4]), int(digits[4:6] or 1), int(digits[6:8] or 1)).toordinal()
    return 86400.0 * day + 3600 * parts[0] + 60 * parts[1] + parts[2] + float(f"0.{fraction or 0}")


def _sweeps(values: NDArray[np.float64], stack: Stack) -> Iterator[tuple[Labels, bool]]:
    """Where one sweep may end and the next begin, if slices are put in order of their values; and whether that is sure.

    It is where the pauses between sweeps are far longer than those inside. Otherwise chance could cut a few slices so
    that each part has one of every place: so each sweep must run along the normal, and there must be as many sweeps as
    slices at one place.
    """
    order = np.argsort(values, kind="stable")
    rises, steps = np.diff(values[order]), np.diff(stack.along[order])
    longest = np.argsort(-rises, kind="stable")
    at_each_place = stack.at_each_place
    is_back = np.abs(steps) > LONG_STEP * np.median(np.abs(steps))  # to the beginning
    is_turn = np.append(False, (steps[1:] * steps[:-1] <= 0) & (steps[:-1] != 0) & ~is_back[:-1])  # to and fro
    ends = [np.flatnonzero(is_back), np.flatnonzero(is_back | is_turn)]
    for count in sorted({*SWEEPS, at_each_place}):
        if 1 < count < len(order):
            if rises[longest[count - 2]] > rises[longest[count - 1]]:  # the longest pauses
                ends.append(longest[: count - 1])
            if len(order) % count == 0:  # as many slices in each
                ends.append(np.arange(1, count) * (len(order) // count) - 1)
    for last in ends:
        inside = np.delete(rises, last)
        if len(last) and inside.size and rises[last].min() > 0:
            labels = _labels(order, last)
            is_sure = bool(rises[last].min() > LONG_PAUSE * inside.max())
            if is_sure or (at_each_place in (1, len(last) + 1) and _run_along(values, stack, labels)):
                yield labels, is_sure


def _run_along(values: NDArray[np.float64], stack: Stack, labels: Labels) -> bool:
    """Whether the values of every part rise or fall along the normal."""
    for part in range(labels.max() + 1):
        rises = np.diff(values[labels == part])  # slices of a stack are in order of their place
        if (rises > 0).any() and (rises < 0).any():
            return False
    return True


def _labels(order: Labels, ends: NDArray[np.int64]) -> Labels:
    """The part of every slice, if parts end after these places in the order."""
    labels = np.empty(len(order), np.int64)
    is_end = np.zeros(len(order), np.int64)
    is_end[ends + 1] = 1
    labels[order] = np.cumsum(is_end)
    return labels
