"""What belongs to a volume: one patient, one phase, one slice per place; and what is said of everything else."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import current_process
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from app.cases import find_cases
from app.cli import main
from app.volumes import (
    DEFAULT_OPTIONS,
    FindOptions,
    Scan,
    dicom_arrange,
    dicom_phases,
    dicom_series,
    find_scans,
    open_volume,
)
from app.volumes.dicom_arrange import arrange
from app.volumes.dicom_fields import IDENTITY
from app.volumes.dicom_header import read_slices
from app.volumes.dicom_slice import Slice
from phantom import make_phantom
from phantom.dicom import uid, write_enhanced, write_series
from tests.conftest import ROOT
from tests.fuzz_series import fuzz_series
from tests.nifti_files import write_mask
from tests.series_stories import item

SPACING = (36.0, 40.0, 5.0)
COUNT = 8
OTHER = 500  # what another patient's or phase's slices are brighter by

Change = Callable[[Dataset, int], None]


def slices(brighter: int = 0, count: int = COUNT) -> NDArray[np.int16]:
    """Slices (9, 7, count), each with a value of its own."""
    return np.broadcast_to(np.arange(count, dtype=np.int16) * 10 + brighter, (9, 7, count))


def write(folder: pathlib.Path, brighter: int = 0, shift_mm: float = 0.0, change: Change | None = None) -> None:
    """A sweep of `COUNT` slices whose places are shifted; `change` gets every dataset and its number."""
    paths = write_series(folder, slices(brighter), SPACING, name=f"{brighter:03d}{{}}.dcm")
    for place, path in enumerate(paths):
        one = pydicom.dcmread(path)
        one.ImagePositionPatient[2] = f"{float(one.ImagePositionPatient[2]) + shift_mm:.4f}"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = uid(brighter, place)
        one.AcquisitionNumber = 1
        del one.InstanceNumber
        if change is not None:
            change(one, place)
        one.save_as(path)


def values(scan: Scan) -> list[int]:
    """The value of every slice of a scan."""
    return [int(plane[0, 0]) for _, plane in sorted(scan.open().slices())]


def ready(scans: Sequence[Scan]) -> list[list[int]]:
    """The values of the slices of every scan that can be segmented, darkest first."""
    return sorted(values(scan) for scan in scans if not (scan.problem or scan.not_ct))


def sweep(brighter: int = 0) -> list[int]:
    """The values of a whole sweep."""
    return [value + brighter for value in range(0, 10 * COUNT, 10)]


def only_line(folder: pathlib.Path, options: FindOptions | None = None) -> str:
    """The one scan's line, which says why it is refused."""
    (scan,) = find_scans(folder, options or FindOptions())
    assert scan.problem is not None
    assert "\n" not in scan.problem
    assert str(folder) in scan.problem
    return scan.problem


def setting(keyword: str, value: object) -> Change:
    """Set an element on every slice; None deletes it."""

    def change(one: Dataset, place: int) -> None:
        setattr(one, keyword, value)

    return change


# One patient


@pytest.mark.parametrize("shift_mm", [0.0, 2.5, 1.3, 40.0], ids=["same", "half", "odd", "behind"])
@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("PatientID", "P1", "P2"),
        ("PatientName", "Phantom^Otto", "Other^Patient"),
        ("PatientBirthDate", "19400102", "19500203"),
        ("ClinicalTrialSubjectID", "S1", "S2"),
        ("StudyInstanceUID", uid("study"), uid("another study")),
        ("AccessionNumber", "A1", "A2"),
        ("FrameOfReferenceUID", uid("frame"), uid("another frame")),
    ],
)
def test_another_patient_study_or_frame_is_another_scan(
    tmp_path: pathlib.Path, keyword: str, one: str, other: str, shift_mm: float
) -> None:
    write(tmp_path, change=setting(keyword, one))
    write(tmp_path, OTHER, shift_mm, setting(keyword, other))
    scans = find_scans(tmp_path)
    assert ready(scans) == [sweep(), sweep(OTHER)]
    said = f"its series UID is also that of another scan, told apart by {keyword}"
    assert [scan.open().warnings for scan in scans] == [(said,)] * 2


@pytest.mark.parametrize("keyword", ["PatientSex", "StudyDate", "SeriesInstanceUID", "ImageType"])
@pytest.mark.parametrize("is_odd", [lambda place: place % 2, lambda place: place > 4], ids=["by turns", "at the end"])
def test_a_scan_part_of_which_lacks_a_field_is_refused_and_not_halved(
    tmp_path: pathlib.Path, keyword: str, is_odd: Callable[[int], bool]
) -> None:
    def change(one: Dataset, place: int) -> None:
        value = getattr(one, keyword, "20200102" if keyword == "StudyDate" else "F")
        setattr(one, keyword, "" if is_odd(place) else value)

    write(tmp_path, change=change)
    for scan in find_scans(tmp_path):
        assert f"{COUNT} slices that would be one volume differ in {keyword}" in str(scan.problem)


@pytest.mark.parametrize(
    ("of_group", "refused"),
    [
        (lambda i: {"kind": ("DERIVED", str(i))}, 500),  # one behind the other
        (lambda i: {"kind": ("DERIVED", str(i)), "position": np.zeros(3)}, 0),  # all at one place
        (lambda i: {"identity": (str(i), *[""] * (len(IDENTITY) - 1))}, 0),
    ],
    ids=["parts of one volume", "reconstructions", "patients"],
)
def test_a_thousand_slices_in_as_many_groups_of_one_series_are_told_apart_in_no_time(
    tmp_path: pathlib.Path, of_group: Callable[[int], dict[str, Any]], refused: int
) -> None:
    """Compared pair by pair, 800 of them took minutes."""
    write(tmp_path)
    first = read_slices(next(tmp_path.iterdir()))
    assert isinstance(first, list)

    def group(i: int) -> list[Slice]:
        one = replace(first[0], position=np.array([0.0, 0.0, 10.0 * i]))
        one = replace(one, **of_group(i))
        return [one, replace(one, position=np.add(one.position, (0, 0, 5)))]

    begin = time.process_time()
    volumes, left = arrange([group(i) for i in range(500)], DEFAULT_OPTIONS)
    assert time.process_time() - begin < 20
    assert sum("1000 slices that would be one volume" in str(series.problem) for series in volumes) == refused
    assert (len(volumes), left) == (500, [])


@pytest.mark.parametrize("field", ["ContentTime", "TriggerTime"])
def test_a_short_scan_every_second_slice_of_which_lacks_a_field_is_not_halved(
    tmp_path: pathlib.Path, field: str
) -> None:
    """The values of the others differ, and so tell nothing apart."""

    def change(one: Dataset, place: int) -> None:
        setattr(one, field, "" if place % 2 else str(100000 + (place * 37) % 50))

    write(tmp_path, change=change)
    (scan,) = find_scans(tmp_path)
    assert scan.open().geometry.shape == (9, 7, COUNT)


def test_copies_of_another_image_type_are_no_torn_scan(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", change=setting("ImageType", ["DERIVED", "SECONDARY", "AXIAL"]))
    assert ready(find_scans(tmp_path)) == [sweep(), sweep()]


def test_one_slice_of_another_patient_is_left_out_and_its_place_is_a_hole(tmp_path: pathlib.Path) -> None:
    def third(one: Dataset, place: int) -> None:
        one.PatientID = "P2" if place == 3 else "P1"

    write(tmp_path, change=third)
    scans = find_scans(tmp_path)
    assert [bool(scan.problem) for scan in scans] == [True, False]
    assert str(scans[1].not_ct).endswith("a single image, not a volume")


def test_a_name_in_two_character_sets_is_one_patient(tmp_path: pathlib.Path) -> None:
    def by_turns(one: Dataset, place: int) -> None:
        one.SpecificCharacterSet = "ISO_IR 192" if place % 2 else "ISO_IR 100"
        one.PatientName = "Müller^Jürgen"

    write(tmp_path, change=by_turns)
    assert ready(find_scans(tmp_path)) == [sweep()]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("PatientID", ("id-7a", "ID-7A")),
        ("PatientSex", ("Female", "F")),
        ("PatientBirthDate", ("1950.01.02", "19500102")),
        ("StudyDate", ("2020-02-01", "20200201")),
    ],
)
def test_a_field_in_two_spellings_halves_no_scan(tmp_path: pathlib.Path, keyword: str, values: tuple[str, str]) -> None:
    """As half of a series has them that was fetched before an archive rewrote its headers."""

    def by_turns(one: Dataset, place: int) -> None:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        one[keyword] = pydicom.DataElement(tag, "LO", values[place % 2])

    write(tmp_path, change=by_turns)
    assert ready(find_scans(tmp_path)) == [sweep()]


# One phase


@pytest.mark.parametrize("shift_mm", [0.0, 2.5, 1.3], ids=["same", "half", "odd"])
@pytest.mark.parametrize(
    "tells",
    [
        (setting("KVP", "80"), setting("KVP", "140")),
        (setting("PatientAge", "050Y"), setting("PatientAge", "061Y")),
        (setting("ConvolutionKernel", "B30f"), setting("ConvolutionKernel", "B60f")),
        (setting("TriggerTime", "120"), setting("TriggerTime", "700.5")),
        (setting("SeriesDescription", "native"), setting("ContrastBolusAgent", "Iomeprol")),
        (
            lambda one, place: setattr(one, "ContentTime", f"1015{place:02d}.5"),
            lambda one, place: setattr(one, "ContentTime", f"1118{place:02d}"),
        ),
        (
            lambda one, place: setattr(one, "InstanceNumber", 1 + place),
            lambda one, place: setattr(one, "InstanceNumber", 1 + COUNT + place),
        ),
    ],
    ids=["kVp", "age", "kernel", "trigger", "contrast in one", "a time per slice", "instance"],
)
def test_every_phase_is_a_volume_whatever_field_tells(
    tmp_path: pathlib.Path, tells: tuple[Change, Change], shift_mm: float
) -> None:
    write(tmp_path, 0, 0.0, tells[0])
    write(tmp_path, OTHER, shift_mm, tells[1])
    scans = find_scans(tmp_path)
    assert ready(scans) == [sweep(), sweep(OTHER)]
    assert "volume 1 of 2 of one series, told apart by " in " ".join(scans[0].open().warnings)


def test_volumes_that_only_their_places_tell_apart_have_names_of_their_own(tmp_path: pathlib.Path) -> None:
    for patient, brighter in (("p1", 0), ("p2", OTHER)):
        write_series(tmp_path / "in" / patient / "CT", slices(brighter), SPACING)
    scans = find_scans(tmp_path / "in")
    assert ready(scans) == [sweep(), sweep(OTHER)]
    names = {scan.name: values(scan) for scan in scans}
    assert len(names) == 2
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    write_series(tmp_path / "elsewhere" / "more" / "p3" / "CT", slices(2 * OTHER), SPACING)
    assert names.items() <= {scan.name: values(scan) for scan in find_scans(tmp_path / "elsewhere")}.items()
    shutil.rmtree(tmp_path / "elsewhere" / "more")
    assert {scan.name: values(scan) for scan in find_scans(tmp_path / "elsewhere")} == names
    cases = find_cases(tmp_path / "elsewhere", tmp_path / "out")
    assert sorted(case.name for case in cases if case.scan.problem is None) == sorted(names)


def test_four_volumes_that_two_fields_tell_apart_together(tmp_path: pathlib.Path) -> None:
    for number, (kernel, agent) in enumerate([("B30", "none"), ("B30", "X"), ("B60", "none"), ("B60", "X")]):

        def both(one: Dataset, place: int, kernel: str = kernel, agent: str = agent) -> None:
            one.ConvolutionKernel, one.ContrastBolusAgent = kernel, agent

        write(tmp_path, 100 * number, change=both)
    assert ready(find_scans(tmp_path)) == [sweep(100 * number) for number in range(4)]


def test_a_phase_that_lacks_a_slice_is_refused_and_the_other_is_read(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 0, change=setting("TemporalPositionIdentifier", 1))
    write(tmp_path, OTHER, change=setting("TemporalPositionIdentifier", 2))
    (gone,) = [path for path in tmp_path.iterdir() if (pydicom.dcmread(path).pixel_array == 1024 + OTHER + 30).all()]
    gone.unlink()
    scans = find_scans(tmp_path)
    assert ready(scans) == [sweep()]
    assert [scan.problem and "but not from" in scan.problem for scan in scans] == [None, True]


def test_two_fields_that_contradict_each_other_are_refused(tmp_path: pathlib.Path) -> None:
    def crossed(phase: int) -> Change:
        def change(one: Dataset, place: int) -> None:
            one.AcquisitionNumber, one.TemporalPositionIdentifier = 1 + phase, 1 + (phase + (place > 3)) % 2

        return change

    write(tmp_path, 0, change=crossed(0))
    write(tmp_path, OTHER, change=crossed(1))
    line = only_line(tmp_path)
    assert "AcquisitionNumber and TemporalPositionIdentifier divide its slices differently" in line


@pytest.mark.parametrize("resample_gaps", [False, True])
@pytest.mark.parametrize(
    ("shift_mm", "line"),
    [(0.0, "16 slices at 8 places, and nothing in their headers"), (1.25, "several even stacks that interleave")],
)
def test_phases_that_nothing_tells_apart_are_never_mixed(
    tmp_path: pathlib.Path, shift_mm: float, line: str, resample_gaps: bool
) -> None:
    write(tmp_path)
    write(tmp_path, OTHER, shift_mm)
    assert line in only_line(tmp_path, FindOptions(resample_gaps=resample_gaps))


@pytest.mark.parametrize("seed", range(5))
def test_instance_numbers_at_random_divide_nothing(tmp_path: pathlib.Path, seed: int) -> None:
    numbers = random.Random(seed).sample(range(1, 17), 16)
    for phase in (0, 1):
        write(tmp_path, OTHER * phase, change=lambda one, i: setattr(one, "InstanceNumber", numbers.pop()))
    assert "16 slices at 8 places" in only_line(tmp_path)


INNOCENT: dict[str, Change] = {
    "a time per slice": lambda one, place: setattr(one, "AcquisitionTime", f"1000{59 - place:02d}.25"),
    "a number per couch position": lambda one, place: setattr(one, "AcquisitionNumber", 1 + place // 4),
    "a number per slice": lambda one, place: setattr(one, "AcquisitionNumber", 40 - place),
    "one value missing": lambda one, place: setattr(one, "TriggerTime", None if place == 2 else "300"),
    "current": lambda one, place: setattr(one, "XRayTubeCurrent", 100 + place % 2),
}


@pytest.mark.parametrize("change", INNOCENT.values(), ids=INNOCENT)
def test_what_varies_innocently_divides_nothing(tmp_path: pathlib.Path, change: Change) -> None:
    write(tmp_path, change=change)
    (scan,) = find_scans(tmp_path)
    assert values(scan) == sweep()
    assert not any("told apart" in warning for warning in scan.open().warnings)


def test_a_hole_between_couch_positions_is_not_two_volumes(tmp_path: pathlib.Path) -> None:
    write(tmp_path, change=lambda one, place: setattr(one, "AcquisitionNumber", 1 + place // 4))
    (gone,) = [path for path in tmp_path.iterdir() if (pydicom.dcmread(path).pixel_array == 1024 + 40).all()]
    gone.unlink()
    assert "slices are 5 mm apart, but not from 15.0 to 25.0 mm" in only_line(tmp_path)


def two_phases_in_one_file(folder: pathlib.Path, tell: Callable[[Dataset, int, int], None]) -> None:
    """An enhanced file of two phases, its frames shuffled; `tell` gets a frame's content item, phase and place."""
    write_enhanced(folder / "a.dcm", slices(), SPACING)
    one = pydicom.dcmread(folder / "a.dcm")
    stack = one.pixel_array
    frames = []
    for phase in (0, 1):
        for place in range(COUNT):
            content = Dataset()
            tell(content, phase, place)
            corner = [-100.0, -90.0, 5.0 * place]
            plane = item(ImagePositionPatient=corner)
            pixels = np.full(stack.shape[1:], 1024 + 10 * place + OTHER * phase, np.uint16)
            frames.append((item(PlanePositionSequence=[plane], FrameContentSequence=[content]), pixels))
    random.Random(0).shuffle(frames)
    one.PerFrameFunctionalGroupsSequence = [frame for frame, _ in frames]
    one.NumberOfFrames = len(frames)
    one.PixelData = b"".join(pixels.tobytes() for _, pixels in frames)
    one.save_as(folder / "a.dcm")


FRAME_TELLS: dict[str, Callable[[Dataset, int, int], None]] = {
    "temporal position": lambda content, phase, place: setattr(content, "TemporalPositionIndex", 1 + phase),
    "dimension": lambda content, phase, place: setattr(content, "DimensionIndexValues", [2 - phase, place + 1]),
    "time": lambda content, phase, place: setattr(
        content, "FrameReferenceDateTime", f"2024022923{58 + phase}{10 + place}.5"
    ),
}


@pytest.mark.parametrize("tell", FRAME_TELLS.values(), ids=FRAME_TELLS)
def test_phases_of_one_multi_frame_file(
    tmp_path: pathlib.Path, tell: Callable[[Dataset, int, int], None], tiny_weights: pathlib.Path
) -> None:
    two_phases_in_one_file(tmp_path / "in", tell)
    assert ready(find_scans(tmp_path / "in")) == [sweep(), sweep(OTHER)]


def test_phases_of_one_multi_frame_file_that_nothing_tells_apart(tmp_path: pathlib.Path) -> None:
    two_phases_in_one_file(tmp_path, lambda content, phase, place: None)
    assert "16 slices at 8 places" in only_line(tmp_path)


# What cannot be read


def spoiled(path: pathlib.Path, how: str) -> None:
    """Make a slice unreadable."""
    content = path.read_bytes()
    path.unlink()
    if how == "dead link":
        path.symlink_to("../annex/objects/1f")
    elif how == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes({"empty": b"", "zeros": bytes(len(content)), "cut": content[:340], "web page": b"<html>"}[how])


@pytest.mark.parametrize("place", [0, 3, COUNT - 1], ids=["first", "inside", "last"])
@pytest.mark.parametrize("how", ["dead link", "loop", "empty", "zeros", "cut", "web page"])
def test_a_slice_that_cannot_be_read_fails_its_series(tmp_path: pathlib.Path, how: str, place: int) -> None:
    write(tmp_path)
    paths = sorted(tmp_path.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    spoiled(paths[place], how)
    assert f"a file cannot be read as a CT slice ({paths[place].name}: " in only_line(tmp_path)


def test_a_series_that_cannot_be_read_at_all_is_one_failure(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    write_series(tmp_path / "in" / "good", make_phantom((72, 80, 12), (4.0, 3.5, 20.0))[0], (4.0, 3.5, 20.0))
    for i in range(9):
        (tmp_path / "in" / "annex").mkdir(exist_ok=True)
        (tmp_path / "in" / "annex" / f"IM{i:04d}").symlink_to("/nowhere/it/was")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    records = [json.loads(line) for line in (tmp_path / "out" / "run_log.jsonl").read_text().splitlines()]
    assert sorted(record["status"] for record in records) == ["done", "failed"]
    (error,) = [record["error"] for record in records if record["status"] == "failed"]
    assert "annex: unreadable_" in error
    assert "9 files cannot be read as a CT slice (IM0000: a broken link)" in error


@pytest.mark.parametrize("names", ["{}.dcm", "IM{}", "1.2.840.{}"])
@pytest.mark.parametrize("stray", ["README", ".DS_Store", "notes.txt", "RS.plan.dcm", "LICENSE"])
def test_a_stray_file_fails_no_series(tmp_path: pathlib.Path, names: str, stray: str) -> None:
    write_series(tmp_path, slices(), SPACING, name=names)
    (tmp_path / stray).write_bytes(b"")
    scans = find_scans(tmp_path)
    assert ready(scans) == [sweep()]
    assert len(scans) == 1 + stray.endswith(".dcm")  # which is called DICOM, and a case by itself


@pytest.mark.parametrize("names", ["IM{}", "1.2.840.{}", "{}"])
@pytest.mark.parametrize(
    "content", ["<html>503 Service Unavailable</html>", "/annex/objects/MD5-s526--0cc175b9c0f1b6a8"]
)
def test_text_in_the_place_of_a_slice_fails_its_series(tmp_path: pathlib.Path, names: str, content: str) -> None:
    paths = write_series(tmp_path, slices(), SPACING, name=names)
    paths[-1].write_text(content)
    assert f"a file cannot be read as a CT slice ({paths[-1].name}: not DICOM)" in only_line(tmp_path)


def test_text_without_a_slice_beside_it_is_nothing(tmp_path: pathlib.Path) -> None:
    write_series(tmp_path / "ct", slices(), SPACING, name="IM{}")
    for name in ("md5", "part1", "part2"):
        (tmp_path / name).write_text("no slice")
        (tmp_path / "ct" / name).write_text("no slice")
    (scan,) = find_scans(tmp_path)
    assert values(scan) == sweep()


def test_a_file_that_names_its_series_fails_only_that(tmp_path: pathlib.Path) -> None:
    write_series(tmp_path, slices(), SPACING, name="a{}.dcm")
    paths = write_series(tmp_path, slices(OTHER), SPACING, series="two", number=4, name="b{}.dcm")
    one = pydicom.dcmread(paths[2])
    del one.ImagePositionPatient
    one.save_as(paths[2])
    scans = find_scans(tmp_path)
    assert ready(scans) == [sweep()]
    assert "series004" in str(scans[1].problem)
    assert str(scans[1].problem).endswith("no ImagePositionPatient); copy or export it again")


def test_a_damaged_multi_frame_file_fails_no_other(tmp_path: pathlib.Path) -> None:
    write_enhanced(tmp_path / "a.dcm", slices(), SPACING)
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:300])
    assert [bool(scan.problem) for scan in find_scans(tmp_path)] == [False, True]


# Shear


@pytest.mark.parametrize("degrees", [10.0, -25.0])
def test_a_tilted_voxel_is_smaller_than_its_edges_multiplied(tmp_path: pathlib.Path, degrees: float) -> None:
    write_series(tmp_path, slices(), SPACING, tilt_mm=5 * np.tan(np.deg2rad(degrees)))
    volume = open_volume(tmp_path)
    assert volume.geometry.spacing_zyx_mm == pytest.approx((5.0, 40.0, 36.0), abs=1e-4)
    assert volume.geometry.voxel_ml == pytest.approx(7.2, abs=1e-4)
    write_mask(np.zeros(volume.geometry.shape, np.uint8, order="F"), volume, tmp_path / "mask.nii.gz")
    assert np.prod(nib.load(tmp_path / "mask.nii.gz").header.get_zooms()) == pytest.approx(7200, rel=1e-4)


@pytest.mark.parametrize("axes", ["LPS", "RSA", "PIL"])
@pytest.mark.parametrize("unit", ["mm", "meter"])
def test_a_sheared_nifti_is_measured_along_the_normal(tmp_path: pathlib.Path, axes: str, unit: str) -> None:
    sheared = np.array([[-2.0, 0, 0, 9], [0, -3.0, 1.5, 4], [0, 0, 4.0, -7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((40, 50, 6), np.int16), sheared)
    target = nib.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(sheared), target))
    scale = {"mm": 1.0, "meter": 1e-3}[unit]
    turned.set_sform(np.diag([scale, scale, scale, 1]) @ turned.affine, 1)
    turned.header["pixdim"][1:4] *= scale
    turned.header.set_xyzt_units(unit)
    nib.save(turned, tmp_path / "x.nii")
    geometry = open_volume(tmp_path / "x.nii").geometry
    assert geometry.spacing_zyx_mm == pytest.approx((4.0, 3.0, 2.0), rel=1e-5)
    assert geometry.voxel_ml == pytest.approx(0.024, rel=1e-5)
    assert abs(np.linalg.det(geometry.oriented_affine[:3, :3])) == pytest.approx(24.0, rel=1e-5)


# Rounding


@pytest.mark.parametrize("step_mm", [0.5, 0.625, 0.75, 1.25])
@pytest.mark.parametrize("start_mm", [0.0, -310.05, 0.31])
def test_positions_rounded_to_a_tenth_are_one_scan_and_a_missing_slice_is_seen(
    tmp_path: pathlib.Path, step_mm: float, start_mm: float
) -> None:
    paths = write_series(tmp_path, slices(count=24), (36.0, 40.0, step_mm))
    for place, path in enumerate(paths):
        one = pydicom.dcmread(path)
        one.ImagePositionPatient[2] = f"{start_mm + place * step_mm:.1f}"
        one.save_as(path)
    geometry = open_volume(tmp_path).geometry
    assert geometry.shape[2] == 24
    assert geometry.spacing_zyx_mm[0] == pytest.approx(step_mm, abs=0.1 / 23)
    paths[11].unlink()
    assert "(gaps: 1); add the missing slices" in only_line(tmp_path)
    (scan,) = find_scans(tmp_path, FindOptions(resample_gaps=True))
    assert scan.open().geometry.shape[2] == 24
    assert "1 of 24 slices were interpolated" in " ".join(scan.open().warnings)


@pytest.mark.parametrize("by_turns", [True, False])
def test_directions_and_spacings_are_compared_by_tolerance(tmp_path: pathlib.Path, by_turns: bool) -> None:
    """0.015 and 36.00005 lie where values rounded to two and to four digits part."""
    rng = random.Random(1)

    def noise(one: Dataset, place: int) -> None:
        off = (1 if place % 2 else -1) if by_turns else rng.choice([-1, 1])
        sine = 0.015 + 2e-6 * off
        cosine = np.sqrt(1 - sine * sine)
        one.ImageOrientationPatient = [f"{value:.9f}" for value in (cosine, sine, 0, -sine, cosine, 0)]
        one.PixelSpacing = [f"{40.00005 + 2e-6 * off:.7f}", f"{36.00005 - 2e-6 * off:.7f}"]

    write(tmp_path, change=noise)
    assert ready(find_scans(tmp_path)) == [sweep()]


# Slices of one place


def at_one_place(folder: pathlib.Path, count: int, kind: str) -> None:
    """A series of its own without any two places along its normals."""
    for i, path in enumerate(write_series(folder, slices(count=count), SPACING, series=kind, number=2)):
        one = pydicom.dcmread(path)
        one.ImagePositionPatient = [-100, -90, 20 + 0.05 * (i % 3)]
        if kind == "radial":
            cosine, sine = np.cos(np.pi * i / 12), np.sin(np.pi * i / 12)
            one.ImageOrientationPatient = [f"{value:.7f}" for value in (cosine, sine, 0, 0, 0, -1)]
        one.save_as(path)


@pytest.mark.parametrize(("kind", "count"), [("bolus", 12), ("single", 1), ("radial", 12)])
def test_slices_of_one_place_are_a_line_and_no_failure(
    tmp_path: pathlib.Path, kind: str, count: int, tiny_weights: pathlib.Path
) -> None:
    write_series(tmp_path / "in" / "scan", make_phantom((72, 80, 12), (4.0, 3.5, 20.0))[0], (4.0, 3.5, 20.0))
    at_one_place(tmp_path / "in" / "beside", count, kind)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "out" / "run_log.jsonl").read_text().splitlines()]
    assert sorted(record["status"] for record in records) == ["done", "ignored"]
    assert not list((tmp_path / "out").glob("*.failed.json"))


@pytest.mark.parametrize("decimals", [0, 3])
def test_slices_whose_positions_were_lost_are_no_bolus_tracking(tmp_path: pathlib.Path, decimals: int) -> None:
    """The scan would be passed over, with a line and no failure."""

    def lose(one: Dataset, place: int) -> None:
        one.SliceLocation = f"{one.ImagePositionPatient[2]:.{decimals}f}"
        one.ImagePositionPatient = [-100, -90, 15]

    write(tmp_path, change=lose)
    assert "8 slices of 8 SliceLocations have one ImagePositionPatient" in only_line(tmp_path)


def test_bolus_tracking_under_the_scans_own_series_uid(tmp_path: pathlib.Path) -> None:
    write(tmp_path, change=setting("AcquisitionNumber", 3))
    for i, path in enumerate(write_series(tmp_path, slices(OTHER, 10), SPACING, name="t{}.dcm")):
        one = pydicom.dcmread(path)
        one.ImagePositionPatient, one.AcquisitionNumber = [-100, -90, 15], 2
        one.AcquisitionTime = f"1000{i:02d}"
        one.save_as(path)
    scans = find_scans(tmp_path)
    assert ready(scans) == [sweep()]
    assert sum("10 images of one place" in str(scan.not_ct) for scan in scans) == 1


@pytest.mark.parametrize("keywords", [["SeriesInstanceUID"], ["FrameOfReferenceUID"], ["StudyInstanceUID"]])
def test_a_scan_whose_slices_all_have_uids_of_their_own_is_refused_and_not_passed_over(
    tmp_path: pathlib.Path, keywords: list[str]
) -> None:
    def torn(one: Dataset, place: int) -> None:
        for keyword in keywords:
            setattr(one, keyword, uid(keyword, place))

    write(tmp_path, change=torn)
    assert "8 slices that would be one volume belong to" in only_line(tmp_path)


# Many files


class _BrokenPool:
    """A pool one of whose processes is killed after three files."""

    def __init__(self, processes: int) -> None:
        assert processes == 3

    def __enter__(self) -> _BrokenPool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(
        self, read: Callable[[pathlib.Path], object], paths: Sequence[pathlib.Path], **_: object
    ) -> Iterator[object]:
        yield from map(read, paths[:3])
        raise BrokenProcessPool


def test_a_killed_reader_is_replaced_by_this_process(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(dicom_series, "MANY_FILES", 8)
    monkeypatch.setattr(dicom_series, "usable_cpus", lambda: 3)
    monkeypatch.setattr(dicom_series, "process_pool", _BrokenPool)
    seen: list[int] = []
    scans = find_scans(tmp_path, FindOptions(on_header=lambda done, total: seen.append(done)))
    assert ready(scans) == [sweep()]
    assert seen == list(range(1, COUNT + 1))


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), PermissionError(13, "Permission denied")])
def test_headers_are_read_where_no_process_can_be_started(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Semaphores need a writable /dev/shm, which some containers lack."""
    write(tmp_path)
    monkeypatch.setattr(dicom_series, "MANY_FILES", 8)
    monkeypatch.setattr(dicom_series, "usable_cpus", lambda: 3)

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    assert ready(find_scans(tmp_path)) == [sweep()]


def test_readers_do_not_run_the_script_that_starts_them(tmp_path: pathlib.Path) -> None:
    """A script of a user of the package, which has no guard."""
    write(tmp_path / "in")
    (tmp_path / "script.py").write_text(
        "import pathlib, sys\n"
        "from app.volumes import dicom_series, find_scans\n"
        "dicom_series.MANY_FILES, dicom_series.usable_cpus = 8, lambda: 2\n"
        "print(len(find_scans(pathlib.Path(sys.argv[1]))), 'scan')\n"
    )
    ended = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "in"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (ended.stdout, ended.stderr) == ("1 scan\n", "")


def test_a_process_that_may_have_no_children_reads_headers_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pool of `multiprocessing`, or a worker of Celery."""
    write(tmp_path)
    monkeypatch.setattr(dicom_series, "MANY_FILES", 8)
    monkeypatch.setattr(dicom_series, "usable_cpus", lambda: 3)
    monkeypatch.setitem(current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert ready(find_scans(tmp_path)) == [sweep()]


# The campaign


def test_no_story_breaks_a_rule(tmp_path: pathlib.Path) -> None:
    outcomes, rules, broken = fuzz_series(tmp_path / "fuzz", 40, 5, tmp_path / "kept")
    assert not broken, rules
    assert min(outcomes[what] for what in ("read", "refused", "ignored", "as SimpleITK reads it")) >= 3


def test_the_campaign_sees_a_reader_that_mixes_phases(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that drops what it does not like."""
    monkeypatch.setattr(
        dicom_arrange, "divide", lambda stack, pixels: dicom_phases.Division((stack.pick(stack.firsts()),))
    )
    _, rules, broken = fuzz_series(tmp_path / "fuzz", 25, 0, tmp_path / "kept")
    assert broken >= 3
    assert rules["one phase"]
