"""DICOM headers -> series that are volumes: what belongs together, in which order, and what is wrong with it.

    headers       `_read_all`, dicom_header.py: a file gives slices, is not CT, or cannot be read
    groups        dicom_groups.py: slices of one series, patient, study, image type, size, spacing and orientation
    volumes       dicom_arrange.py: what each group is, and groups of one series UID together
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
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import current_process

from ..host import process_pool, usable_cpus
from .dicom_arrange import Series, arrange, hash_of, one_place, series_name, torn_apart
from .dicom_groups import groups
from .dicom_header import read_slices
from .dicom_names import EXTENSIONS, NamesByFolder, is_meant
from .dicom_slice import OtherObject, Slice, Unreadable
from .dicom_stack import Stack
from .volume import DEFAULT_OPTIONS, FindOptions

log = logging.getLogger(__name__)

MANY_FILES = 2048  # from here on, several processes read headers faster than one
MOST_PROCESSES = 8  # each takes 70 MiB; more wait for the disk


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
            name = series_name(read.number, read.series)
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
        arranged, at_one_place = arrange(several, options)
        volumes += arranged
        left += at_one_place
    torn, left = torn_apart(left, options)
    found = _blame([*volumes, *torn, *one_place(left, options)], unreadable)
    return _distinct_names([*found, *others.values()], folder)


def _read_all(paths: Sequence[pathlib.Path]) -> Iterator[list[Slice] | OtherObject | Unreadable]:
    """What each file is; many files are read by several processes.

    This one reads them where those cannot be started, as without a writable /dev/shm or below a limit of processes; and
    what is left where one of those was killed.
    """
    done = 0
    processes = min(usable_cpus(), MOST_PROCESSES)
    if len(paths) >= MANY_FILES and processes > 1 and not current_process().daemon:
        try:
            with process_pool(processes) as pool:
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
            named.append(series if is_the_one else replace(series, name=f"{name}_{hash_of(own)}"))
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
