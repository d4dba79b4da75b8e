"""The fuzz over series: what becomes of the stories, judged without the reader's own grouping.

Every slice of every volume must come from one patient, one phase and one place, no slice may be missing inside or at
the ends, and each must lie where its header says. Nothing that can be read may be left out without a line. What can be
told apart must be read, what cannot must be refused. And SimpleITK must read the same files to the same volume.
"""

from __future__ import annotations

import collections
import pathlib
import random
import shutil
import sys
import tempfile

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from app.errors import VolumeError
from app.volumes import Scan, Volume, find_scans
from phantom.dicom import OFFSET
from tests.series_stories import COLUMNS, PATTERN, PIXEL_MM, ROWS, Shot, Story, tell

SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


class Read:
    """A volume that was read.

    Attributes:
        voxels: (Z, Y, X), as they were written: 8 times the slice's number, and the pattern.
        numbers: of its slices.
        volume: as the reader has it.
    """

    def __init__(self, volume: Volume) -> None:
        planes = dict(volume.slices())
        self.voxels = np.stack([planes[z] for z in range(len(planes))]).astype(np.int32) + OFFSET
        self.numbers = [int(number) for number in np.unique(self.voxels >> 3)]
        self.volume = volume

    def index_of(self, place_lps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The voxel (x, y, z) at a place, in fractions."""
        to_voxel = np.linalg.inv(self.volume.geometry.oriented_affine)
        index: NDArray[np.float64] = (to_voxel @ [-place_lps[0], -place_lps[1], place_lps[2], 1.0])[:3]
        return index


def broken_rules(folder: pathlib.Path, stories: list[Story], outcomes: collections.Counter[str]) -> list[str]:
    """The rules that reading a folder breaks, as `rule: what happened`; outcomes are counted."""
    broken, said = [], []
    read: list[tuple[Scan, Read]] = []
    for scan in find_scans(folder):
        line = scan.problem or scan.not_ct
        if line is None:
            try:
                read.append((scan, Read(scan.open())))
                continue
            except VolumeError as error:
                line = str(error)
        said.append((scan, line))
        outcomes["refused" if scan.not_ct is None else "ignored"] += 1
        if "\n" in line or str(folder) not in line:
            broken.append(f"a line names its path: {line!r}")
    shots = {one.number: (story, one) for story in stories for one in story.shots if one.copy_of is None}
    for scan, one in read:
        if not set(one.numbers) <= set(shots):
            broken.append(f"{scan.name}: pixels are as they were written")
            continue
        parts = [shots[number] for number in one.numbers]
        rules = _of_volume(one, parts)
        if not rules:
            outcomes["read"] += 1
            rules, explained = _against_simpleitk(one, [shot for _, shot in parts], parts[0][0].tilted)
            outcomes[explained or "as SimpleITK reads it"] += 1
        broken += [f"{rule} ({scan.name})" for rule in rules]
    used = {number for _, one in read for number in one.numbers}
    for story in stories:
        broken += _of_story(story, used, said, [scan for scan, _ in read])
    return broken


def _of_volume(read: Read, parts: list[tuple[Story, Shot]]) -> list[str]:
    """The rules that one volume breaks."""
    stories, shots = {id(story) for story, _ in parts}, [shot for _, shot in parts]
    story = parts[0][0]
    if len(stories) > 1 or len({shot.whose for shot in shots}) > 1:
        return ["one patient"]
    if len({shot.phase for shot in shots}) > 1:
        return ["one phase"]
    whole = {s.place for s in story.shots if (s.whose, s.phase) == (shots[0].whose, shots[0].phase)}
    places = sorted(shot.place for shot in shots)
    if len(shots) * ROWS * COLUMNS != read.voxels.size or len(set(places)) != len(places):
        return ["one slice per place"]
    if places != list(range(len(places))) or set(places) != whole:
        return ["no slice is missing"]
    return [] if all(_lies_right(read, shot) for shot in shots) else ["slices lie where their headers say"]


def _lies_right(read: Read, shot: Shot) -> bool:
    """Whether three corners of a slice are where its header says, within what positions were rounded by."""
    rows, columns = np.array(shot.dataset.ImageOrientationPatient, float).reshape(2, 3)
    start = np.array(shot.dataset.ImagePositionPatient, float)
    for row, column in ((0, 0), (0, COLUMNS - 1), (ROWS - 1, 0)):
        index = read.index_of(start + rows * column * PIXEL_MM[1] + columns * row * PIXEL_MM[0])
        nearest = np.rint(index).astype(int)
        spacing = np.array(read.volume.geometry.spacing_zyx_mm[::-1])
        if (np.abs(index - nearest) * spacing > 0.12).any() or not (nearest >= 0).all():
            return False
        if (nearest[::-1] >= read.voxels.shape).any():
            return False
        if read.voxels[tuple(nearest[::-1])] != 8 * shot.number + PATTERN[row, column]:
            return False
    return True


def _against_simpleitk(read: Read, shots: list[Shot], tilted: bool) -> tuple[list[str], str]:
    """What SimpleITK has otherwise; and the rule that explains why it was asked for less, or nothing.

    Its series reader takes no frames of a multi-frame file, GDCM puts slices into one series only if their directions
    are equal digit by digit, and an ITK image cannot be sheared.
    """
    paths = [shot.path for shot in shots]
    if len(set(paths)) != len(paths):
        return [], "not as SimpleITK: frames of one file"
    with tempfile.TemporaryDirectory() as scratch:
        for i, path in enumerate(paths):
            (pathlib.Path(scratch) / f"{i}.dcm").symlink_to(path)
        reader = SimpleITK.ImageSeriesReader()
        names = reader.GetGDCMSeriesFileNames(scratch)
        if len(names) != len(paths):
            turned = {tuple(shot.dataset.ImageOrientationPatient) for shot in shots}
            return [] if len(turned) > 1 else ["SimpleITK: the same files"], "not as SimpleITK: directions differ"
        reader.SetFileNames(names)
        image = reader.Execute()
    theirs = SimpleITK.GetArrayFromImage(image).astype(np.int32) + OFFSET
    broken = []
    if sorted(map(float, theirs.mean((1, 2)))) != sorted(8.0 * shot.number + PATTERN.mean() for shot in shots):
        broken.append("SimpleITK: the same pixel means")
    if tilted:
        return broken, "not as SimpleITK: sheared"
    mine = np.sort(read.volume.geometry.spacing_zyx_mm)
    if np.abs(np.sort(image.GetSpacing()) - mine).max() > 0.11 / max(1, len(shots) - 1) + 1e-3 * mine.max():
        broken.append("SimpleITK: the same spacing")
    for z, y, x in ((0, 0, 0), (len(shots) - 1, ROWS - 1, COLUMNS - 1), (len(shots) // 2, 1, 2)):
        place = np.array(image.TransformIndexToPhysicalPoint((x, y, z)))
        index = np.rint(read.index_of(place)).astype(int)[::-1]
        if not ((index >= 0) & (index < read.voxels.shape)).all() or read.voxels[tuple(index)] != theirs[z, y, x]:
            broken.append("SimpleITK: the same geometry")
            break
    return broken, ""


def _of_story(story: Story, used: set[int], said: list[tuple[Scan, str]], read: list[Scan]) -> list[str]:
    """What became of a story's slices that is not right."""
    broken = set()
    for shot in story.shots:
        uid = str(shot.dataset.get("SeriesInstanceUID"))
        lines = [(scan, line) for scan, line in said if uid == scan.series_uid or str(shot.path.parent) in line]
        failed = [line for scan, line in lines if scan.not_ct is None]
        if shot.copy_of is not None:
            volumes = [scan for scan in read if scan.series_uid == uid]
            if not lines and not any("twice" in line for scan in volumes for line in scan.open().warnings):
                broken.add("copies are said")
        elif not shot.readable:
            if not failed:
                broken.add("what cannot be read is said, and fails")
        elif shot.number in used:
            if story.must_be_refused(shot):
                broken.add("what is not a volume is refused")
            if not shot.is_scan:
                broken.add("what is not a scan is not read as one")
        else:
            if not lines:
                broken.add("nothing is left out without a line")
            if shot.is_scan and not story.must_be_refused(shot):
                broken.add(f"a scan is read: {lines and lines[0][1][-160:]}")
            if shot.is_scan and story.must_be_refused(shot) and not failed:
                broken.add("a scan that cannot be read as one fails")
            if not shot.is_scan and failed and not story.lacking:
                broken.add(f"what is not a scan is no failure: {failed[0][-160:]}")
    return sorted(broken)


def fuzz_series(
    folder: pathlib.Path, count: int, seed: int, keep: pathlib.Path
) -> tuple[collections.Counter[str], collections.Counter[str], int]:
    """What came of so many folders, how often each rule was broken, and by how many of them; those are kept."""
    outcomes: collections.Counter[str] = collections.Counter()
    rules: collections.Counter[str] = collections.Counter()
    broken_inputs = 0
    for number in range(count):
        place = folder / "series"
        stories = tell(random.Random(f"{seed} {number}"), place)
        try:
            broken = broken_rules(place, stories, outcomes)
        except Exception as error:  # whatever a reader raises breaks a rule
            broken = [f"no exception but our own: {type(error).__name__}: {error}"]
        if broken:
            broken_inputs += 1
            shutil.rmtree(keep / f"{number:06d}", ignore_errors=True)
            shutil.copytree(place, keep / f"{number:06d}", symlinks=True)
            told = "; ".join(f"{story.kind} ({story.told_by})" for story in stories)
            for line in broken:
                print(f"{number:06d}: {told}: {line}", file=sys.stderr)
            rules.update({line.split(" (")[0].removeprefix("SimpleITK: ").split(":")[0] for line in broken})
        shutil.rmtree(place)
    return outcomes, rules, broken_inputs
