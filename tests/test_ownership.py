"""The program knows its own files by their content: others' work is not touched, and a crash's remains are."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.case_queue import open_case
from app.cases import find_cases
from app.cli import main
from app.errors import ResultError, VolumeError
from app.organs import ORGANS
from app.ownership import BLANK, fits_mark, is_unchanged, mark_of, marked
from app.results import RESULTS, make_results
from app.run_log import RUN_LOG
from app.volumes import FindOptions, open_volume
from app.volumes.gzip_file import compressed
from app.volumes.nifti_header import SIZES
from app.work import Resume, settle
from phantom import make_phantom
from phantom.dicom import write_series
from tests.nifti_files import affine_lps, save, volume_lps, write_mask

SPACING = (4.0, 3.5, 20.0)


class Bytes:
    """A stream that gives a few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def read(self, size: int, /) -> bytes:
        given, self.left = self.left[: min(size, 7)], self.left[min(size, 7) :]
        return given


@given(st.binary(max_size=100), st.binary(max_size=5000), st.integers(0), st.integers(1, 255))
def test_a_mark_fits_its_content_and_no_other(before: bytes, after: bytes, place: int, flip: int) -> None:
    content = marked(before + BLANK + after)
    assert is_unchanged(Bytes(content))
    assert fits_mark(content, len(content))
    assert not fits_mark(content, len(content) - 1)
    changed = bytearray(content)
    changed[place % len(changed)] ^= flip
    assert not is_unchanged(Bytes(bytes(changed)))
    assert not is_unchanged(Bytes(content + b"x"))
    assert mark_of([before, BLANK, after]) in content


# Every kind of output


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_weights: pathlib.Path) -> pathlib.Path:
    """A DICOM series and what is written of it: every output there is."""
    folder = tmp_path_factory.mktemp("written")
    write_series(folder / "in", make_phantom((72, 80, 12), SPACING)[0], SPACING)
    for kinds in ([name for name in RESULTS if name != "nifti"], ["nifti"]):
        save_options = [word for name in kinds for word in ("--save", name)]
        out = folder / ("named" if len(kinds) > 1 else "plain")
        arguments = [str(folder / "in"), str(out), "--weights", str(tiny_weights), "--device", "cpu", *save_options]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(params=list(RESULTS))
def output(request: pytest.FixtureRequest, written: pathlib.Path, tmp_path: pathlib.Path) -> tuple[str, pathlib.Path]:
    """The name of an output, and a copy of its file."""
    (case,) = find_cases(written / "in", written / ("plain" if request.param == "nifti" else "named"))
    (result,) = (make_results([request.param])[request.param],)
    path = result.path(case.base, None)
    return request.param, pathlib.Path(shutil.copy(path, tmp_path / path.name))


def test_an_output_is_its_program_s_as_long_as_nobody_changes_it(output: tuple[str, pathlib.Path]) -> None:
    name, path = output
    result = make_results([name])[name]
    assert result.is_whole(path)
    assert result.wrote(path)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) * 2 // 3] ^= 4
    path.write_bytes(changed)
    assert not result.wrote(path)


@pytest.mark.parametrize("left", ["nothing", "zeros", "a byte", "a part", "nearly all", "zeros at the end"])
def test_what_a_crash_left_is_not_whole_and_may_be_replaced(output: tuple[str, pathlib.Path], left: str) -> None:
    name, path = output
    content = path.read_bytes()
    if left == "zeros at the end" and name not in ("nifti", "nifti-named", "preview"):
        pytest.skip("of the right length, so only a reader sees it")
    path.write_bytes(
        {
            "nothing": b"",
            "zeros": bytes(len(content)),
            "a byte": content[:1] if name in ("preview",) else b"",
            "a part": content[: max(1000, len(content) // 2)],
            "nearly all": content[:-3],
            "zeros at the end": content[:-12] + bytes(12),
        }[left]
    )
    result = make_results([name])[name]
    assert not result.is_whole(path)
    assert result.wrote(path)


def test_what_is_not_there_is_not_whole(tmp_path: pathlib.Path) -> None:
    for name in RESULTS:
        result = make_results([name])[name]
        assert not result.is_whole(tmp_path / "missing"), name


@pytest.mark.parametrize("content", [b"mine", b"\x1f\x8b mine", gzip.compress(b"mine" * 500, mtime=0), b"\x89PNG mine"])
def test_a_file_of_others_counts_as_there_and_stays(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for name in RESULTS:
        result = make_results([name])[name]
        assert not result.wrote(tmp_path / "file"), name


@pytest.mark.parametrize("kind", ["a folder", "a file that may not be read"])
def test_what_cannot_be_read_is_others(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "a folder":
        (tmp_path / "file").mkdir()
    else:
        (tmp_path / "file").write_bytes(b"somebody's")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(pathlib.Path, "open", refuse)  # root may read everything
        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(os, "open", refuse)
        monkeypatch.setattr(Image, "open", refuse)
    for name in RESULTS:
        result = make_results([name])[name]
        assert result.is_whole(tmp_path / "file"), name
        assert not result.wrote(tmp_path / "file"), name


# Masks


Edit = Callable[[pathlib.Path], None]


def by_nibabel(path: pathlib.Path) -> None:
    """Keeps the header, the program's name in it too."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[2, 3, 4] = 3
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)


def by_itk(path: pathlib.Path) -> None:
    image = SimpleITK.ReadImage(path)
    image[2, 3, 4] = 3
    SimpleITK.WriteImage(image, path)


def header_alone(path: pathlib.Path) -> None:
    """A shift of the mask, whose voxels stay."""
    plain = bytearray(gzip.decompress(path.read_bytes()))
    plain[292:296] = np.array([12.5], "<f4").tobytes()  # srow_x[3]
    path.write_bytes(compressed(bytes(plain)))


def unpacked_and_packed(path: pathlib.Path) -> None:
    """By another gzip: the content is the same, so that nobody's work is in it."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A scan, and its mask by this program."""
    source, mask = tmp_path / "in" / "case_0000.nii.gz", tmp_path / "out" / "case.nii.gz"
    for path in (source, mask):
        path.parent.mkdir()
    volume = open_volume(save(source, volume_lps()))
    write_mask(np.zeros(volume.geometry.shape, np.uint8, order="F"), volume, mask)
    return source, mask


@pytest.mark.parametrize("edit", [by_nibabel, by_itk, header_alone])
def test_a_corrected_mask_is_never_overwritten(folders: tuple[pathlib.Path, pathlib.Path], edit: Edit) -> None:
    """Whatever the log says; and with --skip-existing it counts as done."""
    source, mask = folders
    edit(mask)
    before = mask.read_bytes()
    (mask.parent / "run_log.jsonl").write_text('{"case": "case", "status": "done"}\n')
    (case,) = find_cases(source, mask.parent)
    line = f"{source}: its mask would overwrite {mask}, which this program did not write, or which was changed since"
    with pytest.raises(ResultError, match=line):
        open_case(case)
    assert settle(case, Resume(skip_existing=True)) is not None
    assert mask.read_bytes() == before


@pytest.mark.parametrize("edit", [lambda path: None, unpacked_and_packed, lambda path: path.write_bytes(b"")])
def test_its_own_mask_is_replaced(folders: tuple[pathlib.Path, pathlib.Path], edit: Edit) -> None:
    source, mask = folders
    edit(mask)
    (case,) = find_cases(source, mask.parent)
    open_case(case)[1].close()


@pytest.mark.parametrize("edit", ["none", "a sheet", "no log"])
def test_a_mask_of_an_earlier_version_is_replaced_if_it_is_as_the_log_says(
    folders: tuple[pathlib.Path, pathlib.Path], edit: str
) -> None:
    source, mask = folders
    labels = np.asarray(nib.load(mask).dataobj).copy()
    labels[2:5, 3:6, 2:4] = 1
    volumes = {organ.key: round(float((labels == organ).sum()) * voxel_ml(mask), 2) for organ in ORGANS}
    if edit != "no log":
        record = {"case": mask.name.removesuffix(".nii.gz"), "status": "done", "volumes_ml": volumes}
        (mask.parent / RUN_LOG).write_text(json.dumps(record) + "\n")
    if edit == "a sheet":
        labels[0] = 3
    image = nib.Nifti1Image(labels, nib.load(mask).affine)
    image.header["descrip"] = b"hrnet-ocr-abdomen 0.6.1"
    nib.save(image, mask)
    (case,) = find_cases(source, mask.parent)
    if edit == "none":
        open_case(case)[1].close()
    else:
        with pytest.raises(ResultError, match="which this program did not write, or which was changed since"):
            open_case(case)


def voxel_ml(path: pathlib.Path) -> float:
    return abs(float(np.linalg.det(nib.load(path).affine[:3, :3]))) / 1000


def test_what_others_wrote_is_not_overwritten(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    source, mask = folders
    for content in (save(source.parent / "x.nii.gz", volume_lps()).read_bytes(), b"not even a NIfTI"):
        mask.write_bytes(content)
        (case,) = find_cases(source, mask.parent)
        with pytest.raises(ResultError, match="which this program did not write"):
            open_case(case)


@pytest.mark.parametrize("size", [10, 30, 60, 100, -20, -1])
@pytest.mark.parametrize("name", ["case.nii.gz", "case.nii"])
def test_a_mask_that_is_cut_is_done_again(tmp_path: pathlib.Path, size: int, name: str) -> None:
    (tmp_path / "out").mkdir()
    source = tmp_path / name.replace(".", "_0000.", 1)
    volume = open_volume(save(source, volume_lps()))
    write_mask(np.zeros(volume.geometry.shape, np.uint8, order="F"), volume, tmp_path / "out" / name)
    (case,) = find_cases(source, tmp_path / "out")
    assert settle(case, Resume(skip_existing=True)) is not None
    whole = (tmp_path / "out" / name).read_bytes()
    (tmp_path / "out" / name).write_bytes(whole[:size])
    assert settle(case, Resume(skip_existing=True)) is None
    open_case(case)[1].close()


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_no_scans_whatever_their_names(tmp_path: pathlib.Path, size: int) -> None:
    """Of NIfTI-1 and NIfTI-2, compressed and plain, also where a scan would be looked for by its name alone."""
    (tmp_path / "in" / "earlier").mkdir(parents=True)
    kind = nib.Nifti1Image if size == SIZES[0] else nib.Nifti2Image
    nib.save(kind(volume_lps(), affine_lps()), tmp_path / "in" / "scan_0000.nii.gz")
    volume = open_volume(tmp_path / "in" / "scan_0000.nii.gz")
    for name in ("scan.nii.gz", "earlier/other_0000.nii.gz", "earlier/plain.nii"):
        write_mask(np.zeros(volume.geometry.shape, np.uint8, order="F"), volume, tmp_path / "in" / name)
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    assert case.name == "scan"
    with pytest.raises(VolumeError, match=r"plain\.nii: a mask that this program wrote; give the scan"):
        open_volume(tmp_path / "in" / "earlier" / "plain.nii")


@pytest.mark.parametrize(
    ("name", "case"),
    [("scan.nii.gz", "scan"), ("sub/scan.nii", "sub/scan.nii"), ("sub/scan.nii", "sub/scan")],  # the last: until 0.8.0
)
def test_a_corrected_mask_of_an_earlier_run_is_no_scan(tmp_path: pathlib.Path, name: str, case: str) -> None:
    """Its own log says what it is; a scan beside it that the log does not name is one."""
    earlier = tmp_path / "in" / "earlier"
    for path in (earlier / name, earlier / name.replace("scan", "other"), tmp_path / "in" / "scan_0000.nii.gz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume_lps(), affine_lps()), path)
    (earlier / RUN_LOG).write_text(json.dumps({"case": case, "status": "done"}) + "\n")
    found = find_cases(tmp_path / "in", tmp_path / "out", options=FindOptions(recursive=True))
    other = name.replace("scan", "other").removesuffix(".nii.gz")
    assert sorted(one.name for one in found) == [f"earlier/{other}", "scan"]


def test_scans_that_are_linked_crosswise_stay(tmp_path: pathlib.Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for folder in (source, output):
        folder.mkdir()
    for name in "ab":
        save(output / f"{name}.nii.gz", volume_lps())
    (source / "a_0000.nii.gz").symlink_to(output / "b.nii.gz")
    os.link(output / "a.nii.gz", source / "b_0000.nii.gz")
    for case in find_cases(source, output):
        line = f"its mask would overwrite the scan {output / f'{case.name}.nii.gz'}"
        assert line in str(case.scan.problem)


# Statistics, pictures, objects


def test_edited_statistics_stay(written: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    arguments = [str(written / "in"), str(tmp_path), "--weights", str(tiny_weights), "--save", "statistics"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (path,) = tmp_path.glob("*.statistics.json")
    found = json.loads(path.read_text())
    found["organs"]["liver"]["volume_ml"] = 1234.0
    path.write_text(json.dumps(found, indent=1))
    assert CliRunner().invoke(main, arguments).exit_code == 1
    assert json.loads(path.read_text()) == found


@pytest.mark.parametrize("edit", ["a column", "a cell"])
def test_an_edited_table_stays(
    written: pathlib.Path, tmp_path: pathlib.Path, edit: str, caplog: pytest.LogCaptureFixture
) -> None:
    (source,) = (written / "named").glob("*.statistics.json")
    shutil.copy(source, tmp_path)
    (statistics,) = make_results(["statistics"]).values()
    for _ in range(2):
        statistics.finish(tmp_path)
    table = tmp_path / "statistics.csv"
    os.utime(tmp_path / source.name, (0, 0))  # done before the table was written
    lines = table.read_text().splitlines()
    if edit == "a column":
        lines = [f"{line},{'remark' if i == 0 else 'good'}" for i, line in enumerate(lines)]
    else:
        lines[1] = lines[1].replace("liver,", "liver,9", 1)
    table.write_text("\n".join(lines) + "\n")
    before = table.read_bytes()
    with pytest.raises(ResultError, match=r"statistics\.csv: this program did not write it, or it was changed since"):
        statistics.finish(tmp_path)
    assert table.read_bytes() == before


def test_an_edited_row_keeps_its_case_from_being_done_again(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (source,) = (written / "named").glob("*.statistics.json")
    (tmp_path / "sub").mkdir()
    path = pathlib.Path(shutil.copy(source, tmp_path / "sub"))
    os.utime(path, (0, 0))  # done before the table was written
    (statistics,) = make_results(["statistics"]).values()
    statistics.finish(tmp_path)
    assert statistics.wrote(path)
    table = tmp_path / "statistics.csv"
    table.write_text(table.read_text().replace(",spleen,", ",spleen,1", 1))
    with pytest.raises(ResultError, match=r"statistics\.csv: the rows of .* were edited; move the table"):
        statistics.wrote(path)


@pytest.mark.parametrize("set_back", [False, True], ids=["clock goes on", "clock set back"])
def test_no_clock_decides_whether_a_table_was_edited(
    written: pathlib.Path, tmp_path: pathlib.Path, set_back: bool
) -> None:
    (source,) = (written / "named").glob("*.statistics.json")
    path = tmp_path / source.name
    (statistics,) = make_results(["statistics"]).values()
    path.write_text(source.read_text().replace('"volume_ml": ', '"volume_ml": 1'))  # as another model would have it
    statistics.finish(tmp_path)
    shutil.copy(source, path)  # done again, and the run ended before the table was written
    os.utime(path, (0, 0) if set_back else None)
    assert statistics.wrote(path)
    statistics.finish(tmp_path)
    liver = json.loads(source.read_text())["organs"]["liver"]["volume_ml"]
    assert f",liver,{liver}," in (tmp_path / "statistics.csv").read_text()


def test_a_table_with_names_is_read_in_any_locale(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (source,) = (written / "named").glob("*.statistics.json")
    found = json.loads(source.read_text())
    (tmp_path / "a.statistics.json").write_text(json.dumps(found | {"case": "Müller"}))
    code = (
        "import pathlib, sys; from app.results import make_results; "
        "[make_results(['statistics'])['statistics'].finish(pathlib.Path(sys.argv[1])) for _ in range(2)]"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | plain, capture_output=True, text=True, check=False
    )
    assert shown.stderr == ""
    assert "Müller" in (tmp_path / "statistics.csv").read_text("utf-8")


def test_a_table_follows_cases_that_were_done_again_or_removed(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (source,) = (written / "named").glob("*.statistics.json")
    for name in ("a", "b"):
        content = source.read_text().replace(json.loads(source.read_text())["case"], name)
        (tmp_path / f"{name}.statistics.json").write_text(content)
    (statistics,) = make_results(["statistics"]).values()
    statistics.finish(tmp_path)
    (tmp_path / "b.statistics.json").unlink()
    again = json.loads((tmp_path / "a.statistics.json").read_text())
    again["organs"]["liver"]["volume_ml"] = 1.0
    (tmp_path / "a.statistics.json").write_text(json.dumps(again))
    statistics.finish(tmp_path)
    rows = (tmp_path / "statistics.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"a"}


def test_an_edited_picture_and_an_edited_object_stay(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for source in (written / "named").iterdir():
        shutil.copy(source, tmp_path)
    (picture,) = tmp_path.glob("*.preview.png")
    with Image.open(picture) as image:
        about, edited = image.info, image.copy()
    edited.putpixel((5, 5), (255, 0, 0))
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for key, value in about.items():
        texts.add_text(str(key), str(value))
    edited.save(picture, pnginfo=texts)
    assert not make_results(["preview"])["preview"].wrote(picture)
    for name, pattern in (("dicom-seg", "*.seg.dcm"), ("rtstruct", "*.rtstruct.dcm"), ("dicom-sr", "*.sr.dcm")):
        (path,) = tmp_path.glob(pattern)
        one = pydicom.dcmread(path)
        one.SeriesDescription = "corrected"
        one.save_as(path)
        result = make_results([name])[name]
        assert not result.wrote(path), name
        one.preamble, one.SoftwareVersions = bytes(128), "9.0.0"  # as tools write it that keep no preamble
        one.save_as(path)
        assert not result.wrote(path), name
        one.SoftwareVersions = "0.6.1"  # before objects had marks
        one.save_as(path)
        assert result.wrote(path), name
