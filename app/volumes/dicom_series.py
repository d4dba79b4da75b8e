"""DICOM headers -> series that are volumes: what belongs together, in which order, and what is wrong with it.

No public reader survives everything that scanners and archives produce, so nothing here relies on file names, instance
numbers or the number of files. Slices are grouped by series, orientation, size, spacing and image type, and sorted by
their position along the normal of the slices (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dicom_slice import Slice, SliceError, read_header, series_of, slices_of, stored_pixels, why_no_ct
from .volume import DEFAULT_OPTIONS, FindOptions

FEWEST_SLICES = 2  # one has no distance to the next
MANY_FILES = 2048  # from here on, several processes read headers faster than one
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
        places: of the volume's slices among them, see `DicomVolume`.
        problem: why they are no volume; None if they are one.
        not_ct: why nobody would segment them; None if they are CT.
        warnings: what is odd about them but does not stop us.
    """

    name: str
    uid: str
    path: pathlib.Path
    slices: tuple[Slice, ...] = ()
    places: tuple[float, ...] = ()
    problem: str | None = None
    not_ct: str | None = None
    warnings: tuple[str, ...] = ()


def find_series(paths: Sequence[pathlib.Path], options: FindOptions = DEFAULT_OPTIONS) -> list[Series]:
    """The series that these DICOM files hold, in order of name; those that cannot be segmented too, with the reason."""
    parts: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    others: dict[str, Series] = {}
    for done, found in enumerate(_read_all(paths), 1):
        options.on_header(done, len(paths))
        if isinstance(found, Series):
            others.setdefault(f"{found.uid}{found.not_ct}", found)
            continue
        for one in found:
            parts[one.series, one.part].append(one)
    volumes = [series for slices in parts.values() for series in arrange(slices, options)]
    return _distinct_names([*volumes, *others.values()])


def _read_all(paths: Sequence[pathlib.Path]) -> Iterator[list[Slice] | Series]:
    """What each file is; many files are read by several processes."""
    if len(paths) < MANY_FILES:
        yield from map(_read, paths)
        return
    # Not forked: the child of a process with threads may wait for a lock that none of its own will free.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(_read, paths, chunksize=MANY_FILES // 8)


def _read(path: pathlib.Path) -> list[Slice] | Series:
    """The slices of a file, or what else it is."""
    try:
        header = read_header(path)
        uid, number = series_of(header, path)
        reason = why_no_ct(header)
        if reason:
            return Series(_name(number, uid), uid, path.parent, not_ct=reason)
        return slices_of(header, path, uid, number)
    except Exception as error:  # pydicom raises whatever a damaged header makes of it
        kind = "" if isinstance(error, SliceError) else f"{type(error).__name__}: "
        line = f"cannot be read as a CT slice ({kind}{error}); export it again"
        return Series(path.name, str(path), path, problem=" ".join(line.split()))


def _name(number: int, uid: str) -> str:
    return f"series{number:03d}_{_hash_of(uid)}"


def _hash_of(uid: str) -> str:
    """What makes a name that others may have one series' own, whatever else lies in INPUT now or later."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


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


def _name_by(options: FindOptions, first: Slice) -> str:
    """The name of a slice's series as it is asked for; by number where the files do not have what it takes."""
    named = {
        "uid": first.series,
        "accession": first.accession and f"{first.accession}_{_name(first.number, first.series)}",
        "folder": f"{first.path.parent.name}_{_hash_of(first.series)}",
    }
    return re.sub(r"[^\w.-]+", "_", named.get(options.name_by, "")).strip("._") or _name(first.number, first.series)


def arrange(slices: Sequence[Slice], options: FindOptions = DEFAULT_OPTIONS) -> list[Series]:
    """Sort slices of one series and part into volumes: one, or several if each position occurs more than once."""
    first = slices[0]
    is_multi_frame = first.frame is not None
    series = Series(_name_by(options, first), first.series, first.path if is_multi_frame else first.path.parent)
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
    return [_volume(series, stack, options.resample_gaps, twice) for stack in stacks]


def _volume(series: Series, stack: Sequence[Slice], resample_gaps: bool, warnings: tuple[str, ...]) -> Series:
    """A series of one stack, with what is wrong or odd about it."""
    places, problem = tuple(float(i) for i in range(len(stack))), _problem(stack)
    if problem is None and (odd := _uneven(stack)).size:
        filled = _even_places(stack)
        made_up = sum(not place.is_integer() for place in filled)
        if not resample_gaps:
            problem = f"{_gaps_line(stack, odd)}; send the missing slices, or interpolate them with --resample-gaps"
        elif made_up > len(stack):
            problem = f"{_gaps_line(stack, odd)}; more slices would be made up than there are, send the missing ones"
        else:
            places = filled
            warnings = (*warnings, f"{made_up} of {len(places)} slices were interpolated: {_gaps_line(stack, odd)}")
    return replace(series, slices=tuple(stack), places=places, problem=problem, warnings=(*warnings, *_oddities(stack)))


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
    corners = np.array([one.position for one in stack])
    along = np.array([one.along_normal for one in stack])
    share = (along - along[0]) / (along[-1] - along[0])
    line = corners[0] + share[:, None] * (corners[-1] - corners[0])
    if np.abs(corners - line).max() > LINE_MM:
        return "its slices are shifted against each other; expected them on one line, export it again"
    return None


def _gaps(stack: Sequence[Slice]) -> tuple[NDArray[np.float64], float]:
    """The distances of neighbouring slices, and the usual one."""
    gaps = np.diff([one.along_normal for one in stack])
    return gaps, float(np.median(gaps))


def _uneven(stack: Sequence[Slice]) -> NDArray[np.int64]:
    """The slices after which the distance is not the usual one."""
    gaps, usual = _gaps(stack)
    return np.flatnonzero(np.abs(gaps - usual) > GAP_SHARE * usual)


def _gaps_line(stack: Sequence[Slice], odd: NDArray[np.int64]) -> str:
    """Where the distance is not the usual one."""
    along, usual = [one.along_normal for one in stack], _gaps(stack)[1]
    where = ", ".join(f"{along[i]:.1f} to {along[i + 1]:.1f}" for i in odd[:3]) + (" ..." if odd.size > 3 else "")
    return f"slices are {usual:.4g} mm apart, but not at {where} mm along their normal ({odd.size} places)"


def _even_places(stack: Sequence[Slice]) -> tuple[float, ...]:
    """Places at the usual distance among slices that are not; those near a slice are its own."""
    along, usual = np.array([one.along_normal for one in stack]), _gaps(stack)[1]
    count = 1 + round(float(along[-1] - along[0]) / usual)
    places = np.interp(np.linspace(along[0], along[-1], count), along, np.arange(len(stack)))
    nearest = np.rint(places)
    return tuple(np.where(np.abs(places - nearest) < GAP_SHARE, nearest, places).tolist())


def _oddities(stack: Sequence[Slice]) -> list[str]:
    """Warnings about slices that are a volume."""
    if any(one.intercept is None for one in stack):
        return ["no rescale intercept; stored values were taken for Hounsfield units"]
    return []
