"""DICOM series to which something happened, with what is right for each: the inputs of the fuzz over series.

A story writes one or more groups of slices (one patient, one phase each) and knows of every slice what it shows. The
number of a slice is in its pixels, so that whoever reads a volume can say which slices it is made of without asking the
reader: a pixel is 8 times the slice's number, and a pattern from 0 to 7.
"""

from __future__ import annotations

import itertools
import pathlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from phantom.dicom import CT, ENHANCED_CT, OFFSET, SECONDARY, common, meta, uid

ROWS, COLUMNS = 6, 9
PIXEL_MM = (36.00005, 40.00005)  # distance of rows and of columns, where numbers of four digits part
PATTERN = (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) * 3) % 8
PLANES = {
    "axial": (1.0, 0, 0, 0, 1.0, 0),
    "feet first": (-1.0, 0, 0, 0, 1.0, 0),
    "upside down": (1.0, 0, 0, 0, -1.0, 0),
    "turned by 0.3 degrees": (0.9999875, 0.005, 0, -0.005, 0.9999875, 0),
    "coronal": (1.0, 0, 0, 0, 0, -1.0),
    "sagittal": (0, 1.0, 0, 0, 0, -1.0),
    "oblique": (0.96, 0.28, 0, -0.28 * 0.8, 0.96 * 0.8, 0.6),
}
NAMES = {
    "": "Phantom^Otto",
    "ISO_IR 100": "Müller^Jörg",
    "ISO_IR 144": "Иванов^Иван",
    "ISO_IR 192": "Jørgensen^Åse=山田^太郎",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
}


@dataclass
class Shot:
    """One slice as it is written.

    Attributes:
        number: in its pixels.
        whose: key of patient, study and frame of reference.
        phase: which volume of the patient.
        place: which slice of the volume, from 0 without gaps.
        dataset: its header and pixels.
        path: where it is written.
        readable: whether it can be read in the end.
        copy_of: the number of the slice that it is a copy of; None if it is none.
        is_scan: whether it belongs to a scan that somebody would segment.
    """

    number: int
    whose: str
    phase: int
    place: int
    dataset: Dataset
    path: pathlib.Path
    readable: bool = True
    copy_of: int | None = None
    is_scan: bool = True


@dataclass
class Story:
    """Series in a folder, and what is right for them.

    Attributes:
        kind: of story.
        told_by: what tells its parts apart, for a report.
        shots: every slice.
        refused: whether its scans must be refused, else they must be read.
        lacking: patients and phases that lack a slice, and are refused though the others are read.
        tilted: whether its slices are sheared, which SimpleITK cannot say.
    """

    kind: str
    told_by: str = ""
    shots: list[Shot] = field(default_factory=list)
    refused: bool = False
    lacking: set[tuple[str, int]] = field(default_factory=set)
    tilted: bool = False

    def must_be_refused(self, shot: Shot) -> bool:
        """Whether no volume may have a slice."""
        return self.refused or (shot.whose, shot.phase) in self.lacking


class Writer:
    """Writes slices of one look: plane, distance, rounding, names of files, order of numbers."""

    def __init__(self, rng: random.Random, folder: pathlib.Path, numbers: itertools.count[int]) -> None:
        self.rng, self.folder, self.numbers = rng, folder, numbers
        self.series = f"series {folder} {rng.random()}"
        self.plane = rng.choice([*["axial"] * 4, *PLANES])
        self.step_mm = rng.choice([0.5, 0.625, 0.8, 1.25, 2.0, 2.5, 3.0, 5.0])
        self.rounded = self.plane != "oblique" and rng.random() < 0.3
        self.tilt_mm = rng.choice([0.0] * 4 + [0.1, 0.47]) * self.step_mm if not self.rounded else 0.0
        self.start_mm = rng.choice([0.0, -137.5, 412.25])
        self.noise = rng.choice([0.0, 0.0, 1e-6, 1e-5])
        self.syntax = rng.choice([ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self.names = rng.choice(["{:04d}.dcm", "IM{:06d}", "1.2.840.{}", "{hash}.dcm", "{hash}", "CT.{}.ima"])
        self.instances = rng.choice(["rising", "falling", "missing", "all one"])
        self.character_set = rng.choice(list(NAMES))
        self.innocent = rng.sample(INNOCENT, rng.choice([0, 1, 2, 4]))
        self.written = 0
        folder.mkdir(parents=True, exist_ok=True)

    def corner(self, place: float) -> list[str]:
        """ImagePositionPatient of the slice at a place, which may lie between two others."""
        rows, columns = np.array(PLANES[self.plane]).reshape(2, 3)
        normal = np.cross(rows, columns)
        corner = (
            -160 * rows
            - 90 * columns
            + normal * (self.start_mm + place * self.step_mm)
            + columns * place * self.tilt_mm
        )
        return [f"{value:.1f}" if self.rounded else f"{value:.9g}" for value in corner]

    def shot(self, place: int, whose: str = "A", phase: int = 0, count: int = 1, shift: float = 0.0) -> Shot:
        """A slice of a volume of `count`; `shift` of its place in slices."""
        rng, number = self.rng, next(self.numbers)
        one = common(self.series, 3, CT)
        if self.character_set:
            one.SpecificCharacterSet = self.character_set.split("\\")
        one.PatientName = NAMES[self.character_set]
        one.SOPInstanceUID = uid("instance", self.series, number)
        instance = {"rising": place + 1, "falling": count - place, "missing": None, "all one": 1}[self.instances]
        if instance is not None:
            one.InstanceNumber = instance
        one.ImagePositionPatient = self.corner(place + shift)
        turned = np.array(PLANES[self.plane]) + [rng.uniform(-self.noise, self.noise) for _ in range(6)]
        one.ImageOrientationPatient = [f"{value:.9f}" for value in turned]
        one.PixelSpacing = [f"{mm * (1 + rng.uniform(-self.noise, self.noise)):.9g}" for mm in PIXEL_MM]
        one.Rows, one.Columns = ROWS, COLUMNS
        one.PixelData = (8 * number + PATTERN).astype(np.uint16).tobytes()
        one["PixelData"].VR = "OW"
        for change in self.innocent:
            change(rng, one, place, count)
        name = self.names.format(self.written, hash=f"{rng.getrandbits(60):x}")
        self.written += 1
        return Shot(number, whose, phase, place, one, self.folder / name)

    def volume(self, count: int, **what: Any) -> list[Shot]:  # noqa: ANN401 (see shot)
        """The slices of one volume."""
        return [self.shot(place, count=count, **what) for place in range(count)]

    def save(self, shots: Sequence[Shot]) -> None:
        """Write all slices, in any order of time."""
        for one in self.rng.sample(list(shots), len(shots)):
            dataset = one.dataset
            dataset.file_meta = meta(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), self.syntax)
            one.path.parent.mkdir(parents=True, exist_ok=True)
            pydicom.dcmwrite(
                one.path, dataset, enforce_file_format=True, implicit_vr=self.syntax.is_implicit_VR, little_endian=True
            )


def clock(seconds: float) -> str:
    """Seconds of the day as DICOM's TM."""
    return f"{int(seconds) // 3600:02d}{int(seconds) // 60 % 60:02d}{seconds % 60:09.6f}"


# What varies in a scan and tells nothing: (random, dataset, place, number of slices) -> None.
def time_per_slice(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.AcquisitionTime = clock(36000 + 0.4 * place)


def time_per_rotation(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.AcquisitionTime = clock(86390 - 2.5 * (place // 4))


def number_per_couch(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.AcquisitionNumber = 1 + 2 * place // count


def number_per_slice(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.AcquisitionNumber = place + 1


def current(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.XRayTubeCurrent, one.Exposure = 100 + 37 * (place % 3), 80 + place % 2


def content_time(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.ContentTime = clock(40000 + round(0.3 * place + rng.random() * 2))


def heart(rng: random.Random, one: Dataset, place: int, count: int) -> None:
    one.TriggerTime = str(300 + rng.randrange(60))


INNOCENT = [time_per_slice, time_per_rotation, number_per_couch, number_per_slice, current, content_time, heart]


def one_scan(rng: random.Random, write: Writer) -> Story:
    """Nothing happened."""
    shots = write.volume(rng.randint(6, 14))
    write.save(shots)
    return Story("one scan", write.plane, shots)


def two_patients(rng: random.Random, write: Writer) -> Story:
    """One series UID, and two patients, studies or frames of reference."""
    count = rng.randint(5, 9)
    shift = rng.choice([0.0, 0.5, rng.uniform(0.1, 0.9), float(count), float(count + 20)])
    shots = [*write.volume(count), *write.volume(count, whose="B", shift=shift)]
    fields = ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientBirthDate"]
    told = rng.sample(fields, rng.choice([1, 1, 2, 5]))
    values = {
        "PatientID": "P2",
        "StudyInstanceUID": uid("B", "study"),
        "FrameOfReferenceUID": uid("B", "frame"),
        "PatientName": "Other^Patient",
        "PatientBirthDate": "19610203",
    }
    for one in shots:
        one.dataset.PatientBirthDate = "19400102"  # patients of whom only one has a date may be one
        if one.whose == "B":
            for keyword in told:
                setattr(one.dataset, keyword, values[keyword])
    write.save(shots)
    return Story("two patients", f"{' '.join(told)}, shifted by {shift:.2f} slices", shots)


def by_value(keyword: str, *values: object) -> Callable[[Shot], None]:
    """A field that has one value in each phase; None where it is missing."""

    def tell(one: Shot) -> None:
        if values[one.phase] is None:
            if keyword in one.dataset:
                delattr(one.dataset, keyword)
        else:
            setattr(one.dataset, keyword, values[one.phase])

    return tell


def by_clock(keyword: str, per_slice: float, pause: float) -> Callable[[Shot], None]:
    """A time that goes on from slice to slice, with a pause between phases."""

    def tell(one: Shot) -> None:
        setattr(one.dataset, keyword, clock(30000 + pause * one.phase + per_slice * one.place))

    return tell


def by_shuttle(one: Shot) -> None:
    """The couch goes to and fro without a pause."""
    along = one.place if one.phase % 2 == 0 else 9 - one.place
    one.dataset.AcquisitionTime = clock(30000 + 0.25 * (10 * one.phase + along))


def by_date_time(one: Shot) -> None:
    one.dataset.AcquisitionDateTime = f"20240229{clock(80000 + 60 * one.phase + 0.1 * one.place)}"


def by_midnight(one: Shot) -> None:
    seconds = 86390 + 1.5 * one.place + 40 * one.phase
    one.dataset.AcquisitionDate = "20240229" if seconds < 86400 else "20240301"
    one.dataset.AcquisitionTime = clock(seconds % 86400)


def by_instance(one: Shot) -> None:
    one.dataset.InstanceNumber = 1 + one.place + 100 * one.phase


def by_folder(one: Shot) -> None:
    one.path = one.path.parent / f"phase {one.phase}" / one.path.name


TELLS: dict[str, Callable[[Shot], None]] = {
    "acquisition number": by_value("AcquisitionNumber", 2, 1, 4),
    "temporal position": by_value("TemporalPositionIdentifier", 1, 2, 3),
    "trigger time": by_value("TriggerTime", "75.5", "400", "725"),
    "contrast, missing in one": by_value("ContrastBolusAgent", None, "Iomeprol", "Iohexol"),
    "contrast start": by_value("ContrastBolusStartTime", "100000", "101500", "103000"),
    "kVp": by_value("KVP", "80", "140", "100"),
    "kernel": by_value("ConvolutionKernel", "B30f", "B70f", "Br40d\\3"),
    "thickness": by_value("SliceThickness", "5", "1", "3"),
    "description": by_value("SeriesDescription", "arterial", "portal venous", "delayed"),
    "acquisition time, one": by_value("AcquisitionTime", "100000", "100100.5", "100300"),
    "acquisition time per slice": by_clock("AcquisitionTime", 0.3, 40.0),
    "acquisition time, to and fro": by_shuttle,
    "content time per slice": by_clock("ContentTime", 0.7, 90.0),
    "acquisition date and time": by_date_time,
    "time around midnight": by_midnight,
    "instance number": by_instance,
    "folder": by_folder,
    "posture": by_value("PatientPosition", "HFS", "HFP", "FFS"),
    "comment": by_value("ImageComments", "0.0% gated", "50.0% gated", ""),
    "irradiation event": by_value("IrradiationEventUID", uid("e", 1), uid("e", 2), uid("e", 3)),
}


def phases(rng: random.Random, write: Writer) -> Story:
    """Two or three phases in one series that one field tells apart."""
    count, sweeps = rng.randint(5, 9), rng.choice([2, 2, 3])
    if rng.random() < 0.6:
        shifts = [0.0] * sweeps
    elif rng.random() < 0.5:
        shifts = [phase / sweeps for phase in range(sweeps)]
    else:
        shifts = [0.0, rng.uniform(0.15, 0.4), rng.uniform(0.55, 0.85)][:sweeps]
    write.innocent = [change for change in write.innocent if change in (current, number_per_couch, time_per_rotation)]
    write.instances = rng.choice(["rising", "missing", "all one"])
    shots = [one for phase in range(sweeps) for one in write.volume(count, phase=phase, shift=shifts[phase])]
    told = rng.choice(list(TELLS))
    for one in shots:
        TELLS[told](one)
    write.save(shots)
    return Story("phases", f"{told}, {sweeps} phases, {'same places' if not any(shifts) else 'shifted'}", shots)


def phases_told_by_two(rng: random.Random, write: Writer) -> Story:
    """Four volumes at the same places that two fields tell apart together; or two, one of which lacks a slice."""
    count, write.innocent, write.instances = rng.randint(5, 8), [], "missing"
    if rng.random() < 0.5:
        shots = [one for phase in range(4) for one in write.volume(count, phase=phase)]
        for one in shots:
            one.dataset.ConvolutionKernel = ["B30f", "B60f"][one.phase // 2]
            one.dataset.AcquisitionTime = clock(30000 + 60 * (one.phase % 2) + 0.3 * one.place)
        write.save(shots)
        return Story("phases told by two", "kernel and time", shots)
    shots = [one for phase in range(2) for one in write.volume(count, phase=phase)]
    for one in shots:
        TELLS["temporal position"](one)
    gone = next(one for one in shots if one.phase == 1 and one.place == count // 2)
    shots.remove(gone)
    write.save(shots)
    story = Story("phases told by two", "one lacks a slice", shots)
    story.lacking.add(("A", 1))
    return story


def stray_slice(rng: random.Random, write: Writer) -> Story:
    """A slice of another patient in the series of a scan, beside its slices or in the place of one."""
    count = rng.randint(7, 10)
    shots, place = write.volume(count), rng.randrange(1, count - 1)
    other = write.shot(place, whose="B", count=count)
    other.dataset.PatientID, other.is_scan = "P2", False
    instead = rng.random() < 0.5
    if instead:
        shots = [one for one in shots if one.place != place]
    story = Story("stray slice", "in the place of another" if instead else "beside them", [*shots, other])
    if instead:
        story.lacking.add(("A", 0))
    write.save(story.shots)
    return story


def phases_untold(rng: random.Random, write: Writer) -> Story:
    """Two phases at the same places, or shifted, that nothing tells apart, or that two fields divide differently."""
    count = rng.randint(6, 9)
    write.innocent = []
    write.instances = rng.choice(["rising", "missing", "all one"])
    shift = rng.choice([0.0, 0.0, rng.uniform(0.15, 0.4)])
    write.rounded = write.rounded and not shift  # else half a slice and rounding look alike
    how = rng.choice(
        ["nothing", "instance numbers at random", "instance numbers by place", "content time at random", "two fields"]
    )
    if how == "two fields":
        shift = 0.0  # else the places say which one is right
    shots = [*write.volume(count), *write.volume(count, phase=1, shift=shift)]
    numbers = rng.sample(range(1, 500), len(shots))
    for i, one in enumerate(shots):
        if how == "instance numbers at random":
            one.dataset.InstanceNumber = numbers[i]
        elif how == "instance numbers by place":
            one.dataset.InstanceNumber = 2 * one.place + (one.phase + one.place) % 2
        elif how == "content time at random":
            one.dataset.ContentTime = clock(36000 + numbers[i])
        elif how == "two fields":
            one.dataset.AcquisitionNumber = 1 + one.phase
            one.dataset.TemporalPositionIdentifier = 1 + (one.phase + (2 * one.place >= count)) % 2
    write.save(shots)
    return Story("phases untold", f"{how}, {'same places' if not shift else 'shifted'}", shots, refused=True)


def missing(rng: random.Random, write: Writer) -> Story:
    """A slice inside the scan is missing, perhaps where two couch positions meet."""
    count = rng.randint(8, 14)
    gone = {rng.randrange(1, count - 1)}
    if rng.random() < 0.3:
        gone.add(rng.randrange(1, count - 1))
    shots = [one for one in write.volume(count) if one.place not in gone]
    told = rng.choice(["plain", "couch positions", "a time for each part"])
    for one in shots:
        after = one.place > min(gone)
        if told == "couch positions":
            one.dataset.AcquisitionNumber = 1 + after
        elif told == "a time for each part":
            one.dataset.AcquisitionTime = clock(36000 + 60 * after)
    write.save(shots)
    return Story("missing", told, shots, refused=True)


def doubled(rng: random.Random, write: Writer) -> Story:
    """Copies of some slices or of all, in another folder or beside them; or other pixels at the same place."""
    count = rng.randint(5, 9)
    shots = write.volume(count)
    copied = rng.sample(shots, rng.choice([1, 2, count]))
    is_same = rng.random() < 0.7 or len(copied) == count
    for one in copied:
        twin = write.shot(one.place, count=count)
        if is_same:
            twin.dataset, twin.copy_of = pydicom.Dataset(one.dataset), one.number
            if rng.random() < 0.5:
                twin.dataset.SOPInstanceUID = uid("copy", write.series, twin.number)
                twin.dataset.ContentTime = clock(rng.uniform(0, 86000))
        if rng.random() < 0.5 and is_same:
            twin.path = write.folder / "copies" / twin.path.name
        shots.append(twin)
    if not is_same:
        for i, one in enumerate(rng.sample(shots, len(shots))):
            if "ContentTime" in one.dataset:
                del one.dataset.ContentTime
            if write.instances != "missing":
                one.dataset.InstanceNumber = 1 + i
    write.save(shots)
    return Story("doubled", "copies" if is_same else "other pixels", shots, refused=not is_same)


def spoil(rng: random.Random, path: pathlib.Path) -> str:
    """Make a file unreadable; says how."""
    how = rng.choice(["dead link", "0 bytes", "zeros", "cut header", "cut to the preamble", "no position", "text"])
    content = path.read_bytes()
    if how == "dead link":
        path.unlink()
        path.symlink_to(f"/nowhere/annex/{path.name}")
    elif how == "no position":
        one = pydicom.dcmread(path)
        del one.ImagePositionPatient
        one.save_as(path)
    else:
        position = content.index(b"\\", 300)  # in the image type, which stands before the position
        cut = {
            "0 bytes": b"",
            "zeros": bytes(len(content)),
            "cut header": content[: rng.randrange(132, position)],
            "cut to the preamble": content[: rng.randrange(1, 132)],
            "text": content[:132] + b"no elements follow" * 20,
        }
        path.write_bytes(cut[how])
    return how


def unreadable(rng: random.Random, write: Writer) -> Story:
    """Some files of a scan, or all, cannot be read: at its end too, where no gap shows it."""
    shots = write.volume(rng.randint(6, 12))
    write.save(shots)
    where = rng.choice(["inside", "at the end", "several", "all"])
    lost = {
        "inside": [rng.choice(shots[1:-1])],
        "at the end": [rng.choice([shots[0], shots[-1]])],
        "several": rng.sample(shots, 3),
        "all": shots,
    }[where]
    hows = set()
    for one in lost:
        hows.add(spoil(rng, one.path))
        one.readable = False
    return Story("unreadable", f"{where}: {', '.join(sorted(hows))}", shots, refused=True)


def strays(rng: random.Random, write: Writer) -> Story:
    """Files that are no slices and cannot be read, beside a good scan."""
    shots = write.volume(rng.randint(6, 10))
    write.save(shots)
    names = ["README", ".DS_Store", "notes.txt", "index.html", "thumbs.db", "LICENSE", "scan.json", "DICOMDIR"]
    chosen = rng.sample(names, 3)
    for name in chosen:
        path = write.folder / name
        how = rng.choice(["0 bytes", "dead link", "text", "zeros"])
        if how == "dead link":
            path.symlink_to("/nowhere")
        else:
            path.write_bytes({"0 bytes": b"", "text": b"Read me first.\n" * 30, "zeros": bytes(4000)}[how])
    return Story("strays", " ".join(chosen), shots)


def at_one_place(rng: random.Random, write: Writer) -> Story:
    """Bolus tracking, a single image or a radial reformat beside a scan, under its own series UID or the scan's."""
    count = rng.randint(6, 10)
    shots = write.volume(count)
    kind = rng.choice(["bolus", "single", "radial", "bolus in the series"])
    own = write.series
    if kind != "bolus in the series":
        write.series += " beside"
    plane = write.plane
    beside: list[Shot] = []
    for i in range({"single": 1}.get(kind, rng.randint(8, 14))):
        one = write.shot(rng.randrange(count) if not beside else beside[0].place, phase=1, count=count)
        one.is_scan = False
        if kind == "radial":
            angle = np.pi * i / 18
            turned = [np.cos(angle), np.sin(angle), 0, 0, 0, -1]
            one.dataset.ImageOrientationPatient = [f"{value:.8f}" for value in turned]
            one.dataset.ImagePositionPatient = [f"{-100 * value:.6f}" for value in turned[:3]]
        if kind == "bolus in the series":
            one.dataset.AcquisitionNumber = 2 + i
            one.dataset.AcquisitionTime = clock(20000 + i)
        beside.append(one)
    write.series, write.plane = own, plane
    if kind == "bolus in the series":
        for one in shots:
            one.dataset.AcquisitionNumber = 99
            one.dataset.AcquisitionTime = clock(20100)
    write.save([*shots, *beside])
    return Story("at one place", kind, [*shots, *beside])


def beside(rng: random.Random, write: Writer) -> Story:
    """A localizer, another modality or a secondary capture in the series of a scan."""
    shots = write.volume(rng.randint(6, 10))
    kind = rng.choice(["localizer", "modality", "secondary capture"])
    for place in range(rng.choice([1, 2])):
        one = write.shot(place, phase=1)
        one.is_scan = False
        if kind == "localizer":
            one.dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        elif kind == "modality":
            one.dataset.Modality = "SR"
        else:
            one.dataset.SOPClassUID = SECONDARY
        shots.append(one)
    write.save(shots)
    return Story("beside", kind, shots)


def torn(rng: random.Random, write: Writer) -> Story:
    """Every slice has its own series, study or frame of reference."""
    shots = write.volume(rng.randint(6, 10))
    told = rng.choice([["SeriesInstanceUID"], ["FrameOfReferenceUID"], ["SeriesInstanceUID", "StudyInstanceUID"]])
    for one in shots:
        for keyword in told:
            setattr(one.dataset, keyword, uid(keyword, one.number))
    write.save(shots)
    return Story("torn", " ".join(told), shots, refused=True)


FRAME_TELLS = {
    "temporal position index": lambda frame, one: setattr(
        frame.FrameContentSequence[0], "TemporalPositionIndex", 1 + one.phase
    ),
    "frame acquisition number": lambda frame, one: setattr(
        frame.FrameContentSequence[0], "FrameAcquisitionNumber", 7 - one.phase
    ),
    "frame time": lambda frame, one: setattr(
        frame.FrameContentSequence[0],
        "FrameAcquisitionDateTime",
        f"20240229{clock(36000 + 50 * one.phase + 0.2 * one.place)}",
    ),
    "dimension index": lambda frame, one: setattr(
        frame.FrameContentSequence[0], "DimensionIndexValues", [1, one.place + 1, one.phase + 1]
    ),
    "heart phase": lambda frame, one: setattr(
        frame, "CardiacSynchronizationSequence", [item(NominalPercentageOfCardiacPhase=30.0 + 40 * one.phase)]
    ),
    "nothing": lambda frame, one: None,
}


def item(**elements: object) -> Dataset:
    """An item of a sequence."""
    one = Dataset()
    for keyword, value in elements.items():
        setattr(one, keyword, value)
    return one


def multi_frame(rng: random.Random, write: Writer) -> Story:
    """One enhanced file of one phase or two, its frames in any order."""
    count, sweeps = rng.randint(5, 8), rng.choice([1, 2, 2])
    shift, told = rng.choice([0.0, 0.0, 0.5, 0.3]), rng.choice(list(FRAME_TELLS))
    if told == "nothing" and shift == 0.5:
        shift = 0.0  # which nobody could tell from one scan
    shots = [one for phase in range(sweeps) for one in write.volume(count, phase=phase, shift=phase * shift)]
    rng.shuffle(shots)
    whole = common(write.series, 3, ENHANCED_CT)
    whole.SOPInstanceUID, whole.InstanceNumber = uid(write.series), 1
    whole.NumberOfFrames, whole.Rows, whole.Columns = len(shots), ROWS, COLUMNS
    del whole.RescaleSlope, whole.RescaleIntercept
    whole.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=list(PIXEL_MM))],
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(PLANES[write.plane]))],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-OFFSET, RescaleType="HU")],
        )
    ]
    frames = []
    for one in shots:
        place = item(ImagePositionPatient=one.dataset.ImagePositionPatient)
        frame = item(PlanePositionSequence=[place], FrameContentSequence=[item(StackID="1")])
        FRAME_TELLS[told](frame, one)
        frames.append(frame)
        one.path = write.folder / "all.dcm"
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.PixelData = b"".join(one.dataset.PixelData for one in shots)
    whole["PixelData"].VR = "OW"
    whole.file_meta = meta(ENHANCED_CT, whole.SOPInstanceUID, ExplicitVRLittleEndian)
    pydicom.dcmwrite(write.folder / "all.dcm", whole, enforce_file_format=True)
    return Story(
        "multi-frame", f"{told}, {sweeps} phases, shift {shift}", shots, refused=told == "nothing" and sweeps > 1
    )


STORIES = [
    *(
        one_scan,
        one_scan,
        two_patients,
        phases,
        phases,
        phases,
        phases_untold,
        missing,
        doubled,
        unreadable,
        unreadable,
    ),
    *(strays, at_one_place, beside, torn, multi_frame, phases_told_by_two, stray_slice),
]


def tell(rng: random.Random, folder: pathlib.Path) -> list[Story]:
    """Write one story below a folder, or two in folders of their own."""
    numbers = itertools.count(1)
    told = []
    for i, story in enumerate(rng.sample(STORIES, rng.choice([1, 1, 1, 2]))):
        write = Writer(rng, folder / f"{i}", numbers)
        one = story(rng, write)
        one.tilted = write.tilt_mm != 0
        told.append(one)
        swap_character_set(rng, one, write)
    return told


def swap_character_set(rng: random.Random, story: Story, write: Writer) -> None:
    """Let some files declare another character set of the same length, without touching the name's bytes."""
    if write.character_set not in ("ISO_IR 100", "ISO_IR 144") or rng.random() < 0.5:
        return
    other = b"ISO_IR 144" if write.character_set == "ISO_IR 100" else b"ISO_IR 100"
    for one in story.shots:
        if one.readable and one.path.exists() and rng.random() < 0.5 and not one.path.is_symlink():
            content = one.path.read_bytes()
            one.path.write_bytes(content.replace(write.character_set.encode(), other, 1))
