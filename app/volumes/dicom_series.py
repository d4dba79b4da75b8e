"""DICOM headers -> series that are volumes: what belongs together, in which order, and what is wrong with it.

    headers       `_read_all`: a file gives slices, is not CT, or cannot be read
    groups        `groups`: one series, patient, study, frame of reference, image type, size, spacing and orientation
    volumes       `_arrange`: a group is divided into volumes where it has to be (dicom_phases.py)
    together      `_arrange_all`: groups of one series UID are scans that say what tells them apart, or one scan's parts
    what is left  `_torn`, `_one_place`: slices of one place are not a CT to segment, unless they are a scan torn apart
    unreadable    `_blame`: a file that cannot be read fails the series that it may belong to (dicom_names.py)

No public reader survives everything that scanners and archives produce, so nothing here relies on instance numbers or
the number of files, and on file names only to say to which series an unreadable file belongs. Slices are sorted by
their position along the normal of the slices (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pathlib
import re
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

from ..host import usable_cpus
from .dicom_fields import PATIENT, PROJECTIONS
from .dicom_names import EXTENSIONS, NamesByFolder, is_meant
from .dicom_phases import divide
from .dicom_slice import OtherObject, Slice, Unreadable, read_slices
from .dicom_stack import Pixels, Stack, clusters, differences, groups, may_be_one
from .volume import DEFAULT_OPTIONS, FindOptions

log = logging.getLogger(__name__)

MANY_FILES = 2048  # from here on, several processes read headers faster than one
MOST_PROCESSES = 8  # each takes 70 MiB; more wait for the disk
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


def find_series(
    paths: Sequence[pathlib.Path], folder: pathlib.Path, options: FindOptions = DEFAULT_OPTIONS
) -> list[Series]:
    """The series that these files hold, in order of name; those that cannot be segmented too, with the reason.

    Args:
        paths: DICOM files, and others that may be meant to be such.
        folder: INPUT, in which they lie.
        options: how they are looked for.
    """
    slices: list[Slice] = []
    others: dict[str, Series] = {}
    unreadable: list[Unreadable] = []
    for done, read in enumerate(_read_all(paths), 1):
        options.on_header(done, len(paths))
        if isinstance(read, OtherObject):
            name = _name(read.number, read.series)
            series = Series(name, read.series, read.path.parent, not_ct=read.reason)
            others.setdefault(f"{read.series}{read.reason}", series)
        elif isinstance(read, Unreadable):
            unreadable.append(read)
        else:
            slices += read
    volumes: list[Series] = []
    left: list[Stack] = []
    uid_in = {str(one.path.parent): one.series for one in slices if one.has_uid}
    by_uid: dict[str, list[list[Slice]]] = defaultdict(list)
    for group in groups(slices):
        by_uid[uid_in.get(group[0].series, group[0].series)].append(group)
    for several in by_uid.values():
        arranged, at_one_place = _arrange_all(several, options)
        volumes += arranged
        left += at_one_place
    torn, left = _torn(left, options)
    found = _blame([*volumes, *torn, *_one_place(left, options)], unreadable)
    return _distinct_names([*found, *others.values()], folder)


def _read_all(paths: Sequence[pathlib.Path]) -> Iterator[list[Slice] | OtherObject | Unreadable]:
    """What each file is; many files are read by several processes.

    This one reads them where those cannot be started, as without a writable /dev/shm or below a limit of processes; and
    what is left where one of those was killed.
    """
    done = 0
    processes = min(usable_cpus(), MOST_PROCESSES)
    if len(paths) >= MANY_FILES and processes > 1:
        try:
            # Not forked: the child of a process with threads may wait for a lock that none of its own will free.
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                with _without_script():  # here they are started
                    results = pool.map(read_slices, paths, chunksize=MANY_FILES // 8)
                for read in results:
                    yield read
                    done += 1
        except (OSError, RuntimeError, ImportError) as error:  # a broken pool too, most likely for want of memory
            log.debug("headers are read by one process", exc_info=error)
    yield from map(read_slices, paths[done:])


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Let processes that are started in this block not import the script that runs, as `spawn` would.

    They need nothing of it, and a script without `if __name__ == "__main__"` would be run again by each.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _name(number: int, uid: str) -> str:
    return f"series{number:03d}_{_hash_of(uid)}"


def _hash_of(uid: str) -> str:
    """What makes a name that others may have one series' own, whatever else lies in INPUT now or later."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def _distinct_names(found: Iterable[Series], folder: pathlib.Path) -> list[Series]:
    """The same with a hash of what they hold added to names that several have.

    A number would change what a name stands for when another part, phase or patient of the same UID comes or goes.
    Where even their headers are alike, it is a hash of their places in INPUT, a folder.
    """
    by_name: dict[str, list[Series]] = defaultdict(list)
    for series in found:
        by_name[series.name].append(series)
    named = []
    for name, several in sorted(by_name.items()):
        volumes = [series for series in several if series.not_ct is None]
        contents = Counter(map(_content, several))
        for series in several:
            is_the_one = len(several) == 1 or (len(volumes) == 1 and series is volumes[0])
            content = _content(series)
            own = content if contents[content] == 1 else _places(series, folder)
            named.append(series if is_the_one else replace(series, name=f"{name}_{_hash_of(own)}"))
    return named


def _content(series: Series) -> str:
    """What a volume's headers hold, wherever its files lie; or what else it is."""
    slices = sorted(
        repr((one.identity, one.kind, one.shape, one.spacing_mm, one.orientation.tolist(), one.position.tolist()))
        + repr(one.marks)
        for one in series.slices
    )
    return "\n".join(slices) or f"{series.not_ct or series.problem}"


def _places(series: Series, folder: pathlib.Path) -> str:
    """The files of a series below a folder."""
    return "\n".join(sorted(one.path.relative_to(folder).as_posix() for one in series.slices))


def _name_by(options: FindOptions, first: Slice) -> str:
    """The name of a slice's series as it is asked for; by number where the files do not have what it takes."""
    named = {
        "uid": first.series,
        "accession": first.accession and f"{first.accession}_{_name(first.number, first.series)}",
        "folder": f"{first.path.parent.name}_{_hash_of(first.series)}",
    }
    return re.sub(r"[^\w.-]+", "_", named.get(options.name_by, "")).strip("._") or _name(first.number, first.series)


def _series_of(first: Slice, options: FindOptions) -> Series:
    """The series of a slice, without its slices."""
    path = first.path.parent if first.frame is None else first.path
    return Series(_name_by(options, first), first.series, path)


def _arrange_all(several: Sequence[Sequence[Slice]], options: FindOptions) -> tuple[list[Series], list[Stack]]:
    """What `_arrange` makes of the groups that share a series UID; and of those without one that lie beside them.

    Several volumes of one series UID say so. Groups that would be one volume together are refused where nobody can say
    that they are not: their image types differ, or some slices lack what others say of patient, study and series.
    """
    arranged = [_arrange(group, options) for group in several]
    torn = _torn_groups(several, [i for i, (found, _) in enumerate(arranged) if found])
    volumes: list[Series] = []
    for i, (group, (found, _)) in enumerate(zip(several, arranged, strict=True)):
        others = [
            other[0]
            for j, other in enumerate(several)
            if j != i and arranged[j][0] and other[0].series == group[0].series
        ]
        fields = ", ".join(dict.fromkeys(name for other in others for name in differences(group[0], other)))
        scans = "another scan" if len(others) == 1 else f"{len(others)} other scans"
        for series in found:
            if i in torn:
                volumes.append(replace(series, problem=torn[i]))
            elif others:
                said = f"its series UID is also that of {scans}, told apart by {fields}"
                volumes.append(replace(series, warnings=(said, *series.warnings)))
            else:
                volumes.append(series)
    return volumes, [stack for _, at_one_place in arranged for stack in at_one_place]


def _torn_groups(several: Sequence[Sequence[Slice]], volumes: Sequence[int]) -> dict[int, str]:
    """The groups that would be one volume with others and may be one scan, by number, each with what is wrong.

    Args:
        several: groups.
        volumes: the numbers of those that are volumes by themselves.
    """
    alike = {
        i: frozenset(j for j, other in enumerate(several) if j == i or may_be_one(several[i][0], other[0]))
        for i in volumes
    }
    pairs = {frozenset((i, j)) for i, others in alike.items() for j in others}
    torn: dict[int, str] = {}
    for together in {*alike.values(), *pairs}:
        if len(together) > 1:
            stack = Stack.of([one for i in together for one in several[i]])
            if len(stack.firsts()) == len(stack) and stack.as_volume(Pixels()):
                first, *others = (several[i][0] for i in together)
                fields = ", ".join(dict.fromkeys(name for other in others for name in differences(first, other)))
                problem = f"{len(stack)} slices that would be one volume differ in {fields}, or some lack it; "
                torn |= dict.fromkeys(together, f"{problem}expected the same in all, export it again")
    return torn


def _arrange(group: Sequence[Slice], options: FindOptions) -> tuple[list[Series], list[Stack]]:
    """The volumes of a group, or what is wrong with it; and stacks of one place, which are none."""
    stack, pixels = Stack.of(group), Pixels()
    if stack.at_one_place:
        return [], [stack]
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


def _torn(left: Sequence[Stack], options: FindOptions) -> tuple[list[Series], list[Stack]]:
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


def _one_place(left: Sequence[Stack], options: FindOptions) -> list[Series]:
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


def _blame(found: Sequence[Series], unreadable: Sequence[Unreadable]) -> list[Series]:
    """The same, but what may lack an unreadable file is refused; files that no series may lack are cases by themselves.

    A file belongs to the series that it names; one that names none, to every series that has files in its folder under
    names of the same kind: at the end of a stack nothing else shows that it is missing.
    """
    if not unreadable:
        return list(found)
    # Frames of a multi-frame file lack no other file.
    names = [NamesByFolder(one.path for one in series.slices if one.frame is None) for series in found]
    lacks: dict[int, list[Unreadable]] = defaultdict(list)
    alone: dict[pathlib.Path, list[Unreadable]] = defaultdict(list)
    for one in unreadable:
        owners = [i for i, series in enumerate(found) if series.uid == one.series]
        owners = owners or [i for i, beside in enumerate(names) if beside.are_like(one.path, one.is_foreign)]
        for i in owners:
            lacks[i].append(one)
        if not owners:
            alone[one.path.parent].append(one)
    blamed = [
        replace(series, problem=_unread(lacks[i]), not_ct=None) if i in lacks else series
        for i, series in enumerate(found)
    ]
    for folder, several in alone.items():
        paths = [one.path for one in several if not one.is_foreign or one.path.suffix.lower() in EXTENSIONS]
        meant = [one for one in several if one.is_dicom or (one.path in paths and is_meant(one.path, paths))]
        if meant:
            name = hashlib.sha256("/".join(one.path.name for one in meant).encode()).hexdigest()[:8]
            path = folder if len(meant) > 1 else meant[0].path
            blamed.append(Series(f"unreadable_{name}", str(folder), path, problem=_unread(meant)))
    return blamed


def _unread(files: Sequence[Unreadable]) -> str:
    """How many files cannot be read, and why the first of them cannot."""
    what = "a file" if len(files) == 1 else f"{len(files)} files"
    return f"{what} cannot be read as a CT slice ({files[0].path.name}: {files[0].reason}); copy or export it again"
