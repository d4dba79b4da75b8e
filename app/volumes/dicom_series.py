"""DICOM headers -> series that are volumes: what belongs together, in which order, and what is wrong with it.

No public reader survives everything that scanners and archives produce, so nothing here relies on file names, instance
numbers or the number of files. Slices are grouped by series, orientation, size, spacing and image type, and sorted by
their position along the normal of the slices (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import hashlib
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .dicom_slice import Slice, SliceError, read_header, series_of, slices_of, stored_pixels, why_no_ct

FEWEST_SLICES = 2  # one has no distance to the next
SAME_MM = 0.01  # positions nearer than this are one
GAP_SHARE = 0.05  # by which a distance of slices may differ from the others; scanners round to 0.1 mm
LINE_MM = 1.0  # by which a slice may lie beside the line that the others' corners form


@dataclass(frozen=True)
class Series:
    """Slices that belong together, or what is wrong with them.

    Attributes:
        name: patient-safe: the series number and a hash of the series UID, and a counter where there are several parts.
        uid: the series UID, or the folder where that is empty.
        path: the folder, or the file of a multi-frame image.
        slices: in order of their position.
        problem: why they are no volume; None if they are one.
        not_ct: why nobody would segment them; None if they are CT.
        warnings: what is odd about them but does not stop us.
    """

    name: str
    uid: str
    path: pathlib.Path
    slices: tuple[Slice, ...] = ()
    problem: str | None = None
    not_ct: str | None = None
    warnings: tuple[str, ...] = ()


def find_series(paths: Sequence[pathlib.Path]) -> list[Series]:
    """The series that these DICOM files hold, in order of name; those that cannot be segmented too, with the reason."""
    parts: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    others: dict[str, Series] = {}
    for path in paths:
        try:
            header = read_header(path)
            uid, number = series_of(header, path)
            reason = why_no_ct(header)
            if reason:
                others.setdefault(f"{uid}{reason}", Series(_name(number, uid), uid, path.parent, not_ct=reason))
                continue
            for one in slices_of(header, path, uid, number):
                parts[one.series, one.part].append(one)
        except Exception as error:  # pydicom raises whatever a damaged header makes of it
            kind = "" if isinstance(error, SliceError) else f"{type(error).__name__}: "
            line = f"cannot be read as a CT slice ({kind}{error}); export it again"
            others[str(path)] = Series(path.name, str(path), path, problem=" ".join(line.split()))
    found = [series for slices in parts.values() for series in arrange(slices)]
    return _distinct_names([*found, *others.values()])


def _name(number: int, uid: str) -> str:
    return f"series{number:03d}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def _distinct_names(found: Iterable[Series]) -> list[Series]:
    """The same with a counter added to names that several have."""
    by_name: dict[str, list[Series]] = defaultdict(list)
    for series in found:
        by_name[series.name].append(series)
    named = []
    for name, several in sorted(by_name.items()):
        if len(several) == 1:
            named += several
        else:
            named += [replace(series, name=f"{name}_{i}") for i, series in enumerate(several, 1)]
    return named


def arrange(slices: Sequence[Slice]) -> list[Series]:
    """Sort slices of one series and part into volumes: one, or several if each position occurs more than once."""
    first = slices[0]
    is_multi_frame = first.frame is not None
    series = Series(
        _name(first.number, first.series), first.series, first.path if is_multi_frame else first.path.parent
    )
    ordered = sorted(slices, key=lambda one: (one.along_normal, one.acquisition, one.instance))
    stacks: list[list[Slice]] = []
    doubles = 0
    for one in ordered:
        near = [one.along_normal - stack[-1].along_normal < SAME_MM for stack in stacks]
        here = [stack for stack, is_near in zip(stacks, near, strict=True) if is_near]
        if any(_same_pixels(stack[-1], one) for stack in here):
            doubles += 1
            continue
        free = [stack for stack, is_near in zip(stacks, near, strict=True) if not is_near]
        # Of its own acquisition if there is one; scanners that count every slice as an acquisition have none.
        fitting = [stack for stack in free if stack[-1].acquisition == one.acquisition] or free
        if fitting:
            min(fitting, key=lambda stack: stack[-1].along_normal).append(one)
        else:
            stacks.append([one])
    twice = (f"{doubles} slices occur twice; one of each was used",) if doubles else ()
    return [
        replace(series, slices=tuple(stack), problem=_problem(stack), warnings=(*twice, *_oddities(stack)))
        for stack in stacks
    ]


def _same_pixels(one: Slice, other: Slice) -> bool:
    """Whether two slices at one position are copies of each other."""
    if one.path == other.path:
        return one.frame == other.frame
    try:
        return bool(np.array_equal(stored_pixels(one), stored_pixels(other)))
    except Exception:  # damaged pixels are no copy; the case that they belong to will say what is wrong with them
        return False


def _problem(stack: Sequence[Slice]) -> str | None:
    """Why these slices, in order of their position, are no volume; None if they are one."""
    if len(stack) < FEWEST_SLICES:
        return f"{len(stack)} slices, expected {FEWEST_SLICES} or more"
    places = np.array([one.along_normal for one in stack])
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > GAP_SHARE * usual)
    if odd.size:
        where = ", ".join(f"{places[i]:.1f} to {places[i + 1]:.1f}" for i in odd[:3]) + (" ..." if odd.size > 3 else "")
        return (
            f"slices are {usual:.4g} mm apart, but not at {where} mm along their normal ({odd.size} places); "
            "send the missing slices, or export it with one distance"
        )
    corners = np.array([one.position for one in stack])
    line = corners[0] + np.linspace(0, 1, len(stack))[:, None] * (corners[-1] - corners[0])
    if np.abs(corners - line).max() > LINE_MM:
        return "its slices are shifted against each other; expected them on one line, export it again"
    return None


def _oddities(stack: Sequence[Slice]) -> list[str]:
    """Warnings about slices that are a volume."""
    if any(one.intercept is None for one in stack):
        return ["no rescale intercept; stored values were taken for Hounsfield units"]
    return []
