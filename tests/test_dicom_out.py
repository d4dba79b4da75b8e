"""Structure sets, reports and label maps: read back by other programs, voxel by voxel and number by number."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from app.errors import InputError, ResultError
from app.organs import ORGANS, Organ
from app.results import make_results
from app.results.outlines import outlines
from app.volumes import FindOptions, Volume, find_scans, open_volume
from app.volumes.dicom import DicomVolume
from phantom import make_phantom
from phantom.dicom import AXIAL, store, uid, write_enhanced, write_series
from tests.tiny import segmentation_of

SPACING = (3.0, 2.5, 12.0)
SHAPE = (100, 104, 20)
FLIPPED = (1.0, 0, 0, 0, -1.0, 0)
OBLIQUE = (0.96, 0.28, 0, -0.28, 0.96, 0)
DICOM = ("dicom-seg", "rtstruct", "dicom-sr")
SHAS = {"tiny.safetensors": "0" * 64}


@pytest.fixture(scope="module")
def labels() -> NDArray[np.uint8]:
    """The phantom's organs, and in one slice a spleen with holes, an island in one of them, and a diagonal neck."""
    found = np.asfortranarray(make_phantom(SHAPE, SPACING)[1].astype(np.uint8))
    plane = found[:, :, 5]
    plane[20:60, 20:60] = Organ.SPLEEN
    plane[30:35, 30:35] = plane[32:36, 45:50] = plane[45:55, 25:55] = 0
    plane[48:52, 30:50] = Organ.SPLEEN
    plane[60:64, 60:64] = Organ.SPLEEN  # touches the rest by one corner
    return found


def write_kind(folder: pathlib.Path, kind: str) -> None:
    """The phantom as a series of single slices, or as one multi-frame file."""
    hounsfield = make_phantom(SHAPE, SPACING)[0]
    if kind == "single":
        write_series(folder, hounsfield, SPACING)
    else:
        write_enhanced(folder / "file", hounsfield, SPACING)


def write_all(folder: pathlib.Path, volume: Volume, mask: NDArray[np.uint8], seg_type: str = "binary") -> pathlib.Path:
    """Every output of a mask, as folder/case.*; that path without an extension."""
    folder.mkdir(exist_ok=True)
    for result in make_results(("nifti", *DICOM), seg_type=seg_type).values():
        result.write(segmentation_of(volume, mask, sha256=SHAS), result.path(folder / "case", None))
    return folder / "case"


def write_phantom_series(
    folder: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> pathlib.Path:
    """Write a series into `folder`/in and its outputs into `folder`/out; the outputs' path without an extension."""
    write_series(folder / "in", make_phantom(SHAPE, SPACING)[0], SPACING, orientation)
    return write_all(folder / "out", open_volume(folder / "in"), labels)


def run(*command: object) -> str:
    """What a program says; its exit status must be 0."""
    shown = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout + shown.stderr


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if find_program(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def find_program(name: str) -> str | None:
    """A program of the virtual environment, or of the system."""
    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def same_place(image: nib.Nifti1Image, mask: nib.Nifti1Image, label: int) -> None:
    """An image is set at the voxels of a label, looked up by patient coordinates, and nowhere else."""
    found = np.asarray(image.dataobj) != 0
    wanted = np.argwhere(np.asarray(mask.dataobj) == label)
    to_image = np.linalg.inv(image.affine) @ mask.affine
    index = np.c_[wanted, np.ones(len(wanted))] @ to_image.T
    nearest = np.rint(index[:, :3]).astype(int)
    assert np.abs(index[:, :3] - nearest).max() < 0.02
    assert found[tuple(nearest.T)].all()
    assert found.sum() == len(wanted)


@needs("plastimatch")
@pytest.mark.parametrize("orientation", [AXIAL, FLIPPED], ids=["axial", "flipped"])
def test_plastimatch_fills_the_structure_set_to_the_very_mask(
    tmp_path: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> None:
    name = write_phantom_series(tmp_path, labels, orientation)
    structures = name.with_suffix(".rtstruct.dcm")
    ct, filled = ("--referenced-ct", tmp_path / "in"), ("--output-prefix", tmp_path / "filled")
    run("plastimatch", "convert", "--input", structures, *ct, *filled, "--prefix-format", "nii.gz")
    for organ in ORGANS:
        image = nib.load(tmp_path / "filled" / f"{organ.meaning}.nii.gz")
        same_place(image, nib.load(name.with_suffix(".nii.gz")), organ)


@needs("segimage2itkimage")
@pytest.mark.parametrize("orientation", [AXIAL, FLIPPED, OBLIQUE], ids=["axial", "flipped", "oblique"])
def test_dcmqi_reads_the_segmentation_to_the_very_mask(
    tmp_path: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> None:
    name = write_phantom_series(tmp_path, labels, orientation)
    program, to = find_program("segimage2itkimage"), ("--outputDirectory", tmp_path, "-t", "nii")
    run(program, "--inputDICOM", name.with_suffix(".seg.dcm"), *to)
    for number, organ in enumerate(ORGANS, 1):
        same_place(nib.load(tmp_path / f"{number}.nii.gz"), nib.load(name.with_suffix(".nii.gz")), organ)


@needs("tid1500reader")
@pytest.mark.parametrize("kind", ["single", "multi-frame"])
def test_dcmqi_reads_the_volumes_of_the_report(tmp_path: pathlib.Path, labels: NDArray[np.uint8], kind: str) -> None:
    write_kind(tmp_path / "in", kind)
    name = write_all(tmp_path / "out", open_volume(tmp_path / "in"), labels)
    told = tmp_path / "report.json"
    run(find_program("tid1500reader"), "--inputDICOM", name.with_suffix(".sr.dcm"), "--outputMetadata", told)
    segmentation = pydicom.dcmread(name.with_suffix(".seg.dcm"))
    measured = json.loads(told.read_text())["Measurements"]
    assert [one["Finding"]["CodeValue"] for one in measured] == [organ.snomed for organ in ORGANS]
    for organ, one in zip(ORGANS, measured, strict=True):
        (item,) = one["measurementItems"]
        assert item["quantity"]["CodeMeaning"] == "Volume"
        assert item["units"]["CodeValue"] == "ml"
        assert float(item["value"]) == pytest.approx((labels == organ).sum() * np.prod(SPACING) / 1000, abs=1e-3)
        assert one["segmentationSOPInstanceUID"] == segmentation.SOPInstanceUID
        label = segmentation.SegmentSequence[one["ReferencedSegment"] - 1].SegmentLabel
        assert label == organ.meaning


@needs("dciodvfy")
@pytest.mark.parametrize("kind", ["single", "multi-frame"])
def test_dciodvfy_finds_no_error(tmp_path: pathlib.Path, labels: NDArray[np.uint8], kind: str) -> None:
    write_kind(tmp_path / "in", kind)
    name = write_all(tmp_path / "out", open_volume(tmp_path / "in"), labels)
    for extension, what in ((".seg.dcm", "Segmentation"), (".rtstruct.dcm", "RTStructureSet"), (".sr.dcm", "SR")):
        command = ["dciodvfy", str(name.with_suffix(extension))]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (shown.stdout + shown.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert any(what in line for line in lines)


@pytest.mark.parametrize("orientation", [AXIAL, FLIPPED, OBLIQUE], ids=["axial", "flipped", "oblique"])
def test_a_label_map_holds_the_mask_in_less_space(
    tmp_path: pathlib.Path, labels: NDArray[np.uint8], orientation: tuple[float, ...]
) -> None:
    write_series(tmp_path / "in", make_phantom(SHAPE, SPACING)[0], SPACING, orientation)
    volume = open_volume(tmp_path / "in")
    name = write_all(tmp_path / "map", volume, labels, "labelmap").with_suffix(".seg.dcm")
    plain = write_all(tmp_path / "plain", volume, labels).with_suffix(".seg.dcm")
    assert name.stat().st_size < 0.5 * plain.stat().st_size
    found = highdicom.seg.segread(name)
    assert str(found.SegmentationType) == "LABELMAP"
    array = found.get_volume(combine_segments=True)
    mask = nib.load(tmp_path / "map" / "case.nii.gz")
    to_lps = np.diag([-1.0, -1, 1, 1]) @ mask.affine
    grid = np.argwhere(labels != 0)
    index = np.rint((np.c_[grid, np.ones(len(grid))] @ (np.linalg.inv(array.affine) @ to_lps).T)[:, :3]).astype(int)
    np.testing.assert_array_equal(array.array[tuple(index.T)], labels[tuple(grid.T)])
    assert (array.array != 0).sum() == len(grid)
    assert pydicom.dcmread(name).SOPInstanceUID != pydicom.dcmread(plain).SOPInstanceUID


@pytest.mark.parametrize("kind", ["uneven", "tilted", "oblique", "multi-frame", "gaps filled"])
def test_outlines_lie_in_the_plane_of_the_image_that_they_name(tmp_path: pathlib.Path, kind: str) -> None:
    """And between its pixels: at halves of columns and rows, counted by that image's own header."""
    spacing = (6.0, 5.0, 4.0)
    hounsfield, mask = make_phantom((40, 44, 40), spacing)
    if kind == "multi-frame":
        write_enhanced(tmp_path / "in" / "file", hounsfield, spacing)
    else:
        orientation = OBLIQUE if kind == "oblique" else AXIAL
        tilt_mm = {"tilted": 1.5}.get(kind, 0.0)
        skip = (17,) if kind == "gaps filled" else ()
        jitter = np.random.default_rng(3).uniform(
            -0.09, 0.09, (40, 3)
        )  # to the next slice less than a twentieth of 4 mm
        for path in write_series(tmp_path / "in", hounsfield, spacing, orientation, tilt_mm, skip=skip):
            one = pydicom.dcmread(path)
            place = np.array(one.ImagePositionPatient, float) + jitter[int(one.InstanceNumber) - 1]
            one.ImagePositionPatient = [f"{value:.4f}" for value in place]
            one.save_as(path)
    (scan,) = find_scans(tmp_path / "in", FindOptions(resample_gaps=kind == "gaps filled"))
    volume = scan.open()
    labels = np.zeros(volume.geometry.shape, np.uint8, order="F")
    labels[..., : mask.shape[2]] = mask[..., : labels.shape[2]]
    written = pydicom.dcmread(write_all(tmp_path / "out", volume, labels).with_suffix(".rtstruct.dcm"))
    images = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "in").iterdir())}
    contours = [contour for region in written.ROIContourSequence for contour in region.ContourSequence]
    assert len(contours) > 60
    for contour in contours:
        (reference,) = contour.ContourImageSequence
        image = images[reference.ReferencedSOPInstanceUID]
        origin, rows, columns = plane_of(image, reference.get("ReferencedFrameNumber"))
        away = np.array(contour.ContourData, float).reshape(-1, 3) - origin
        assert np.abs(away @ np.cross(rows, columns)).max() < 0.001
        halves = 2 * np.c_[away @ rows / spacing[0], away @ columns / spacing[1]]
        assert np.abs(halves - halves.round()).max() < 0.001


def plane_of(image: pydicom.Dataset, frame: int | None) -> NDArray[np.float64]:
    """Position, and directions of rows and columns, of an image or of its frame, which counts from 1."""
    place = turn = image
    if frame is not None:
        place = image.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0]
        turn = image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    return np.array([*place.ImagePositionPatient, *turn.ImageOrientationPatient], float).reshape(3, 3)


NAMES = {  # character set; name and description as stored (PS3.5, annexes H to K); the name as it is read, if it is
    "Japanese": (
        ["", "ISO 2022 IR 87"],
        b"Suzuki^Ichirou=\x1b$BNkLZ\x1b(B^\x1b$B0lO:\x1b(B=\x1b$B$9$:$-\x1b(B^\x1b$B$$$A$m$&\x1b(B",
        b"\x1b$BJ!It\x1b(B CT",
        "Suzuki^Ichirou=鈴木^一郎=すずき^いちろう",
    ),
    "Japanese, half width": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        b"\xca\xd7",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "Korean": (
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        b"\x1b$)C\xba\xb9\xba\xce",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    # pydicom leaves the escape sequences of this one in the text: the bytes are what counts.
    "Chinese": (
        ["", "ISO 2022 IR 58"],
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        b"\x1b$)A\xb8\xb9\xb2\xbf",
        None,
    ),
    "GB18030": (
        "GB18030",
        "Wang^XiaoDong=王^小东=".encode("gb18030"),
        "腹部".encode("gb18030"),
        "Wang^XiaoDong=王^小东",
    ),
    "UTF-8": ("ISO_IR 192", "Nguyễn^Văn An".encode(), "bụng".encode(), "Nguyễn^Văn An"),
    "Greek": ("ISO_IR 126", "Διονυσιος".encode("iso8859-7"), "κοιλιά".encode("iso8859-7"), "Διονυσιος"),
    "two alphabets": (
        ["ISO 2022 IR 100", "ISO 2022 IR 144"],
        "Buc^Jérôme=".encode("latin-1") + b"\x1b-L" + "Люк".encode("iso8859-5"),
        "côté".encode("latin-1"),
        "Buc^Jérôme=Люк",
    ),
    "not declared": (None, "Schön^Änne".encode("latin-1"), "Bäuche".encode("latin-1"), None),
    "wrongly declared": ("ISO_IR 192", "Schön^Änne".encode("latin-1"), "Bäuche".encode("latin-1"), None),
    "unknown": ("ISO_IR 999", b"Plain^Name", b"plain", "Plain^Name"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the sets that it does not know or that do not fit
@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        *((kind, ExplicitVRLittleEndian) for kind in NAMES),
        *(("Japanese", ImplicitVRLittleEndian), ("Korean", ExplicitVRBigEndian)),
    ],
)
def test_names_are_written_byte_for_byte_in_any_character_set(tmp_path: pathlib.Path, kind: str, syntax: str) -> None:
    declared, name, description, read = NAMES[kind]
    hounsfield, mask = make_phantom((40, 44, 6), (6.0, 6.0, 40.0))
    charset: dict[str, Any] = {} if declared is None else {"SpecificCharacterSet": declared}
    for path in write_series(tmp_path / "in", hounsfield, (6.0, 6.0, 40.0), StudyDescription="", **charset):
        one = pydicom.dcmread(path)
        one["PatientName"].value, one["StudyDescription"].value = name, description
        store(one, path, syntax)
    volume = open_volume(tmp_path / "in")
    base = write_all(tmp_path / "out", volume, np.asfortranarray(mask))
    for extension in (".seg.dcm", ".rtstruct.dcm", ".sr.dcm"):
        written = pydicom.dcmread(base.with_suffix(extension))
        stored = [written.get_item(keyword).value.rstrip(b" ") for keyword in ("PatientName", "StudyDescription")]
        assert stored == [name, description]
        assert written.get("SpecificCharacterSet") == declared
        assert read is None or str(written.PatientName) == read
        assert str(written.Manufacturer) == "hrnet-ocr-abdomen"


@pytest.mark.parametrize("frame", [None, ""], ids=["missing", "empty"])
def test_a_lost_frame_of_reference_is_named_anew(tmp_path: pathlib.Path, frame: str | None) -> None:
    hounsfield, mask = make_phantom((40, 44, 6), (6.0, 6.0, 40.0))
    write_series(tmp_path / "in", hounsfield, (6.0, 6.0, 40.0), FrameOfReferenceUID=frame)
    base = write_all(tmp_path / "out", open_volume(tmp_path / "in"), np.asfortranarray(mask))
    segments, structures = (pydicom.dcmread(base.with_suffix(end)) for end in (".seg.dcm", ".rtstruct.dcm"))
    assert pydicom.uid.UID(segments.FrameOfReferenceUID).is_valid
    assert structures.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == segments.FrameOfReferenceUID


def test_who_issued_the_patients_id_and_how_it_was_de_identified_is_kept(tmp_path: pathlib.Path) -> None:
    issuer, method = pydicom.Dataset(), pydicom.Dataset()
    issuer.UniversalEntityID, issuer.UniversalEntityIDType = "1.2.3", "ISO"
    method.CodeValue, method.CodingSchemeDesignator, method.CodeMeaning = "113100", "DCM", "Basic Profile"
    kept: dict[str, Any] = {
        "IssuerOfPatientID": "HOSPITAL_A",
        "IssuerOfPatientIDQualifiersSequence": [issuer],
        "PatientAge": "050Y",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethodCodeSequence": [method],
        "ClinicalTrialProtocolID": "TRIAL",
        "IssuerOfAccessionNumberSequence": [issuer],
    }
    write_series(tmp_path / "in", np.zeros((12, 10, 4), np.int16), (30.0, 30.0, 5.0), **kept)
    volume = open_volume(tmp_path / "in")
    base = write_all(tmp_path / "out", volume, np.ones(volume.geometry.shape, np.uint8, order="F"))
    for extension in (".seg.dcm", ".rtstruct.dcm", ".sr.dcm"):
        written = pydicom.dcmread(base.with_suffix(extension))
        assert {name: written[name].value for name in kept} == kept


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the values
@pytest.mark.parametrize("how", ["no preamble", "thickness", "no class but in the file's own header"])
def test_objects_are_made_of_whatever_was_read(tmp_path: pathlib.Path, how: str) -> None:
    for path in write_series(tmp_path / "in", np.zeros((12, 10, 4), np.int16), (30.0, 30.0, 5.0)):
        if how.startswith("no class"):
            one = pydicom.dcmread(path)
            del one.SOPClassUID
            pydicom.dcmwrite(path, one, enforce_file_format=False)
            continue
        content = path.read_bytes()
        element = b"\x18\0\x50\0DS\4\0n/a "
        place = content.index(b"\x20\0\x0d\0UI")
        path.write_bytes(content[132:] if how == "no preamble" else content[:place] + element + content[place:])
    volume = open_volume(tmp_path / "in")
    base = write_all(tmp_path / "out", volume, np.ones(volume.geometry.shape, np.uint8, order="F"))
    for extension in (".seg.dcm", ".rtstruct.dcm", ".sr.dcm"):
        assert pydicom.dcmread(base.with_suffix(extension)).PatientID == "P1"


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the values
def test_values_of_the_study_that_the_standard_does_not_allow_are_written_as_they_are(tmp_path: pathlib.Path) -> None:
    hounsfield, mask = make_phantom((40, 44, 6), (6.0, 6.0, 40.0))
    odd = {"StudyDate": "01.02.2020", "StudyTime": "10:30", "PatientBirthDate": "1950-02", "PatientSex": "MALE"}
    for path in write_series(tmp_path / "in", hounsfield, (6.0, 6.0, 40.0)):
        one = pydicom.dcmread(path)
        for keyword, value in odd.items():
            tag = pydicom.datadict.tag_for_keyword(keyword)
            one[keyword] = pydicom.DataElement(tag, pydicom.datadict.dictionary_VR(keyword), value.encode())
        one.save_as(path)
    base = write_all(tmp_path / "out", open_volume(tmp_path / "in"), np.asfortranarray(mask))
    for extension in (".seg.dcm", ".rtstruct.dcm", ".sr.dcm"):
        written = pydicom.dcmread(base.with_suffix(extension))
        assert {keyword: written.get_item(keyword).value.decode().rstrip() for keyword in odd} == odd


@given(st.integers(0, 2**63 - 1), st.integers(1, 9), st.integers(1, 9))
def test_an_outline_goes_around_every_pixel_of_any_region(seed: int, columns: int, rows: int) -> None:
    """By the even-odd rule, at the pixels' centres."""
    inside = np.random.default_rng(seed).random((columns, rows)) < 0.6
    rings = outlines(inside)
    filled = np.zeros_like(inside)
    for x, y in np.ndindex(inside.shape):
        crossings = 0
        for ring in rings:
            for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
                    crossings += 1
        filled[x, y] = crossings % 2
    np.testing.assert_array_equal(filled, inside)


def uids_of(folder: pathlib.Path) -> dict[str, str]:
    """The instance UID of every object in a folder, by the kind that its name tells."""
    return {path.suffixes[-2]: str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.glob("*.dcm")}


@pytest.mark.parametrize("kind", ["two patients", "two phases", "phases in one file"])
def test_volumes_of_one_series_uid_have_objects_with_uids_of_their_own(tmp_path: pathlib.Path, kind: str) -> None:
    hounsfield = make_phantom(SHAPE, SPACING)[0][:, :, :8]
    if kind == "phases in one file":
        write_enhanced(tmp_path / "in" / "file", np.repeat(hounsfield, 2, axis=2), SPACING)
        both = pydicom.dcmread(tmp_path / "in" / "file")
        for i, frame in enumerate(both.PerFrameFunctionalGroupsSequence):
            place = i // 2
            frame.PlanePositionSequence[0].ImagePositionPatient = [-100, -90, float(12 * place)]
            content = pydicom.Dataset()
            content.TemporalPositionIndex = i % 2 + 1
            frame.FrameContentSequence = [content]
        both.save_as(tmp_path / "in" / "file")
    else:
        for number in (1, 2):
            folder = tmp_path / "in" / str(number)
            patient: dict[str, Any] = {"PatientID": f"P{number}"} if kind == "two patients" else {}
            for path in write_series(folder, hounsfield + number, SPACING, acquisition=number, **patient):
                one = pydicom.dcmread(path)
                one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = uid(one.SOPInstanceUID, number)
                one.save_as(path)
    first, second = (scan.open() for scan in find_scans(tmp_path / "in"))
    mask = np.zeros(first.geometry.shape, np.uint8, order="F")
    mask[20:40, 20:40, 2:6] = Organ.LIVER
    for name, volume in (("first", first), ("again", first), ("second", second)):
        write_all(tmp_path / name, volume, mask)
    found = [uids_of(tmp_path / name) for name in ("first", "again", "second")]
    assert found[0] == found[1]
    assert len(set(found[0].values()) | set(found[2].values())) == 6
    report = json.dumps(pydicom.dcmread(next((tmp_path / "second").glob("*.sr.dcm"))).to_json_dict())
    assert found[2][".seg"] in report
    assert found[0][".seg"] not in report
    if kind == "phases in one file":  # whose frames are named by their numbers in the file
        groups = pydicom.dcmread(next((tmp_path / "second").glob("*.seg.dcm"))).PerFrameFunctionalGroupsSequence
        frames = [group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for group in groups]
        assert isinstance(second, DicomVolume)
        assert sorted(frames) == sorted((one.frame or 0) + 1 for one in second.files[2:6])


def test_another_mask_of_the_same_scan_is_another_object(tmp_path: pathlib.Path, labels: NDArray[np.uint8]) -> None:
    write_kind(tmp_path / "in", "single")
    (scan,) = find_scans(tmp_path / "in")
    changed = labels.copy(order="F")
    changed[np.nonzero(labels)[0][0], np.nonzero(labels)[1][0], np.nonzero(labels)[2][0]] = 0
    for name, mask in (("one", labels), ("other", changed)):
        write_all(tmp_path / name, scan.open(), mask)
    one, other = (uids_of(tmp_path / name) for name in ("one", "other"))
    assert all(one[kind] != other[kind] for kind in (".seg", ".rtstruct", ".sr"))


@pytest.mark.parametrize("uids", ["1.2.3", ""])
def test_no_object_names_images_that_have_no_uids_of_their_own(tmp_path: pathlib.Path, uids: str) -> None:
    """Programs would show its segments on another slice, or on none."""
    shape = (8, 8, 3)
    for path in write_series(tmp_path / "in", np.zeros(shape, np.int16), (2.0, 2.0, 5.0)):
        one = pydicom.dcmread(path)
        one.SOPInstanceUID = uids
        one.save_as(path)
    mask = np.full(shape, Organ.LIVER, np.uint8, order="F")
    with pytest.raises(ResultError, match="its images have no SOPInstanceUIDs of their own"):
        write_all(tmp_path / "out", open_volume(tmp_path / "in"), mask)


def test_an_outline_of_more_than_64_kib_is_read_by_programs_that_know_no_unknown_values(tmp_path: pathlib.Path) -> None:
    """Of explicit value representations, none that numbers may have is longer; pydicom itself reads the others too."""
    shape = (3000, 8, 3)
    write_series(tmp_path / "in", np.zeros(shape, np.int16), (0.2, 15.0, 5.0))
    mask = np.zeros(shape, np.uint8, order="F")
    mask[1:-1, 2, 1] = mask[1:-1:2, 3, 1] = Organ.LIVER  # a comb, each of whose teeth has corners of its own
    write_all(tmp_path / "out", open_volume(tmp_path / "in"), mask)
    stored = pydicom.dcmread(tmp_path / "out" / "case.rtstruct.dcm").ROIContourSequence[0].ContourSequence[0]
    element = stored.get_item("ContourData")
    assert len(element.value) > 1 << 16
    assert element.VR != "UN"


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "contourpy", None)
    for module in ("rtstruct", "outlines"):
        monkeypatch.delitem(sys.modules, f"app.results.{module}")
    with pytest.raises(InputError, match=r"--save rtstruct needs contourpy; install hrnet-ocr-abdomen"):
        make_results(("rtstruct",))
