"""Groups of slices -> volumes, or what is wrong with them.

A group is divided into volumes where it has to be (dicom_phases.py). Groups of one series UID are scans that say what
tells them apart, or the parts of one scan (dicom_groups.py). What is left, slices of one place, is not a CT to segment,
unless it is a scan that was torn apart.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .dicom_fields import PATIENT, PROJECTIONS
from .dicom_groups import clusters, differences, torn_groups
from .dicom_phases import divide
from .dicom_slice import Slice
from .dicom_stack import Pixels, Stack
from .volume import FindOptions

AT_ONE_LOCATION_MM = 1.0  # of images of one place; theirs may be rounded
TORN_APART = 4  # lone slices that together would be a volume, from which on they are a scan


@dataclass(frozen=True)
class Series:
    """Slices that belong together, or what is wrong with them.

    Attributes:
        name: patient-safe: the series number and a hash of the series UID, and a counter where there are several parts.
        uid: the series UID, or the folder where that is empty.
        path: the folder, or the file of a multi-frame image.
        slices: in order of their position.
        places: of the volume's slices among them, see `DicomVolume`.
        problem: why they are not a volume; None if they are one.
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


def arrange(several: Sequence[Sequence[Slice]], options: FindOptions) -> tuple[list[Series], list[Stack]]:
    """The volumes of groups that share a series UID, and of those without one that lie beside them; and what is left.

    Several volumes of one series UID say so. Groups that would be one volume together are refused where nobody can say
    that they are not: their image types differ, or some slices lack what others say of patient, study and series.

    Returns:
        Volumes, or what is wrong with them; and stacks of one place, which are none.
    """
    arranged = [_arrange_group(group, options) for group in several]
    torn = torn_groups(several, [i for i, (found, _) in enumerate(arranged) if found])
    scans: dict[str, list[Slice]] = defaultdict(list)  # by series UID, the first slice of each
    for group, (found, _) in zip(several, arranged, strict=True):
        if found:
            scans[group[0].series].append(group[0])
    told_apart = {uid: ", ".join(differences(firsts)) for uid, firsts in scans.items()}
    volumes: list[Series] = []
    for i, (group, (found, _)) in enumerate(zip(several, arranged, strict=True)):
        uid = group[0].series
        for series in found:
            if i in torn:
                volumes.append(replace(series, problem=torn[i]))
            elif len(scans[uid]) > 1:
                others = "another scan" if len(scans[uid]) == 2 else f"{len(scans[uid]) - 1} other scans"
                said = f"its series UID is also that of {others}, told apart by {told_apart[uid]}"
                volumes.append(replace(series, warnings=(said, *series.warnings)))
            else:
                volumes.append(series)
    return volumes, [stack for _, at_one_place in arranged for stack in at_one_place]


def _arrange_group(group: Sequence[Slice], options: FindOptions) -> tuple[list[Series], list[Stack]]:
    """The volumes of a group, or what is wrong with it; and stacks of one place, which are none."""
    stack, pixels = Stack.of(group), Pixels()
    if stack.at_one_place:
        locations = [one.location for one in group if one.location is not None]
        if not locations or max(locations) - min(locations) < AT_ONE_LOCATION_MM:
            return [], [stack]
        problem = f"{len(group)} slices of {len(set(locations))} SliceLocations have one ImagePositionPatient"
        return [replace(_series_of(group[0], options), slices=stack.slices, problem=f"{problem}; export it again")], []
    division = divide(stack, pixels)
    long = [part for part in division.parts if not part.at_one_place]
    arranged = []
    for number, part in enumerate(long, 1):
        one = _volume(_series_of(part.slices[0], options), part, pixels, options.resample_gaps)
        if division.problem:
            one = replace(one, problem=f"{division.problem}; send each volume as a series of its own")
        elif len(long) > 1:
            said = f"volume {number} of {len(long)} of one series, told apart by {division.by}"
            one = replace(one, warnings=(said, *one.warnings))
        arranged.append(one)
    return arranged, [part for part in division.parts if part.at_one_place]


def _volume(series: Series, stack: Stack, pixels: Pixels, resample_gaps: bool) -> Series:
    """A series of one stack, with what is wrong or odd about it."""
    single, problem, warnings = stack.without_copies(pixels), None, []
    if single is None:
        problem = (
            f"{len(stack)} slices at {len(stack.firsts())} places, and nothing in their headers divides them into "
            "volumes of one slice per place; send each volume as a series of its own"
        )
        return replace(series, slices=stack.slices, problem=problem)
    if single.copies:
        warnings.append(f"{single.copies} slices occur twice; one of each was used")
    places = tuple(float(i) for i in range(len(single)))
    if single.is_shifted:
        problem = "its slices are offset sideways from each other; export the series again"
    elif single.uneven().size and single.interleaves:
        problem = (
            "its slices are several even stacks that interleave, and nothing in their headers tells these apart; send "
            "each volume as a series of its own"
        )
    elif single.uneven().size:
        filled = single.even_places()
        made_up = sum(not place.is_integer() for place in filled)
        if not resample_gaps:
            problem = f"{single.gaps_line()}; add the missing slices, or interpolate them with --resample-gaps"
        elif made_up > len(single):
            problem = f"{single.gaps_line()}; --resample-gaps would invent more slices than exist; add the missing ones"
        else:
            places = filled
            warnings.append(f"{made_up} of {len(places)} slices were interpolated: {single.gaps_line()}")
    without = sum(one.intercept is None for one in single.slices)
    if without == len(single):
        warnings.append("no rescale intercept; stored values were taken for Hounsfield units")
    elif without and not problem:
        problem = f"{without} of {len(single)} slices have no rescale intercept, the others do; export it again"
    if projections := set(single.slices[0].kind) & set(PROJECTIONS):
        warnings.append(
            f"its slices are projections through several ({', '.join(sorted(projections))} in ImageType), whose values "
            "are not those of one place: volumes and borders will be wrong; take the scan itself"
        )
    return replace(series, slices=single.slices, places=places, problem=problem, warnings=tuple(warnings))


def torn_apart(left: Sequence[Stack], options: FindOptions) -> tuple[list[Series], list[Stack]]:
    """Lone slices that together would be a volume: a scan whose UIDs were replaced file by file; and the other stacks.

    They are refused: nobody can say whether they are one scan, and passing over them would lose it.
    """
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for one in (stack.slices[0] for stack in left if len(stack) == 1):
        alike[one.identity[: len(PATIENT)], one.kind, one.shape].append(one)
    torn = []
    for cluster in (cluster for several in alike.values() for cluster in clusters(several)):
        if len(cluster) >= TORN_APART and Stack.of(cluster).as_volume(Pixels()):
            series = len({one.series for one in cluster})
            frames = len({one.identity for one in cluster})
            problem = (
                f"{len(cluster)} slices that would be one volume belong to {series} series, and to {frames} studies or "
                "frames of reference; expected one of each, export it again"
            )
            torn.append(replace(_series_of(cluster[0], options), slices=tuple(cluster), problem=problem))
    taken = {id(one) for series in torn for one in series.slices}
    return torn, [stack for stack in left if id(stack.slices[0]) not in taken]


def one_place(left: Sequence[Stack], options: FindOptions) -> list[Series]:
    """A line for each series that has slices of one place: it is not a CT to segment, and no failure."""
    by_series: dict[str, list[Stack]] = defaultdict(list)
    for stack in left:
        by_series[stack.slices[0].series].append(stack)
    found = []
    for stacks in by_series.values():
        slices = tuple(one for stack in stacks for one in stack.slices)
        if len(slices) == 1:
            what = "a single image, not a volume"
        elif len(stacks) == 1:
            what = f"{len(slices)} images of one place, not a volume (bolus tracking or another dynamic series)"
        else:
            what = f"{len(slices)} images of {len(stacks)} planes, not a volume (such as a radial or rotating reformat)"
        found.append(replace(_series_of(slices[0], options), slices=slices, not_ct=what))
    return found


def series_name(number: int, uid: str) -> str:
    """The name of a series by its number."""
    return f"series{number:03d}_{hash_of(uid)}"


def hash_of(uid: str) -> str:
    """What makes a name that others may have one series' own, whatever else lies in INPUT now or later."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def _name_by(options: FindOptions, first: Slice) -> str:
    """The name of a slice's series as it is asked for; by number where the files do not have what it takes."""
    by_number = series_name(first.number, first.series)
    named = {
        "uid": first.series,
        "accession": first.accession and f"{first.accession}_{by_number}",
        "folder": f"{first.path.parent.name}_{hash_of(first.series)}",
    }
    return re.sub(r"[^\w.-]+", "_", named.get(options.name_by, "")).strip("._") or by_number


def _series_of(first: Slice, options: FindOptions) -> Series:
    """The series of a slice, without its slices."""
    path = first.path.parent if first.frame is None else first.path
    return Series(_name_by(options, first), first.series, path)
