"""A mask with names: read by other libraries as before, with its table inside and three beside it."""

from __future__ import annotations

import json
import pathlib
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from click.testing import CliRunner

from app.cli import main
from app.errors import InputError
from app.organs import ORGANS
from app.results import make_results
from phantom import write_phantom


@pytest.mark.parametrize("kind", ["NIfTI-1", "NIfTI-2", "big endian"])
def test_it_is_the_same_mask_with_names(tmp_path: pathlib.Path, tiny_weights: pathlib.Path, kind: str) -> None:
    source = tmp_path / "in" / "x_0000.nii.gz"
    write_phantom(source, None, (72, 80, 12), (4.0, 3.5, 20.0), axes="RAS")
    image = nib.load(source)
    if kind == "NIfTI-2":
        nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine, image.header), source)
    elif kind == "big endian":
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(np.dtype(">i2"))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(">i2"), image.affine, header), source)
    for name in ("nifti", "nifti-named"):
        arguments = [str(tmp_path / "in"), str(tmp_path / name), "--weights", str(tiny_weights), "--save", name]
        assert CliRunner().invoke(main, arguments).exit_code == 0
    plain, named = (nib.load(tmp_path / name / "x.nii.gz") for name in ("nifti", "nifti-named"))
    np.testing.assert_array_equal(np.asarray(named.dataobj), np.asarray(plain.dataobj))
    np.testing.assert_array_equal(named.affine, plain.affine)
    assert (int(plain.header["intent_code"]), len(plain.header.extensions)) == (0, 0)
    assert int(named.header["intent_code"]) == 1002
    (extension,) = named.header.extensions
    assert extension.get_code() == 30
    table = ElementTree.fromstring(extension.content.rstrip(b"\0"))
    names = {int(label.attrib["Key"]): label.text for label in table.iter("Label")}
    assert names == {0: "background"} | {int(organ): organ.key for organ in ORGANS}
    if kind != "NIfTI-2":  # SimpleITK reads NIfTI-1
        other = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "nifti-named" / "x.nii.gz"))
        np.testing.assert_array_equal(other.T, np.asarray(plain.dataobj))


def test_the_tables_agree(tmp_path: pathlib.Path) -> None:
    make_results(("nifti-named",))["nifti-named"].finish(tmp_path)
    rows = json.loads((tmp_path / "labels.json").read_text())["labels"]
    slicer = [line.split() for line in (tmp_path / "labels.ctbl").read_text().splitlines() if line[0].isdigit()]
    snap = [line.split() for line in (tmp_path / "labels.itksnap.txt").read_text().splitlines()[1:]]
    for row, a, b in zip(rows, slicer[1:], snap[1:], strict=True):
        assert [str(row["value"]), row["name"], *map(str, row["rgb"]), "255"] == a
        assert [str(row["value"]), *map(str, row["rgb"]), "1", "1", "1", f'"{row["name"]}"'] == b


def test_both_kinds_of_mask_exclude_each_other() -> None:
    with pytest.raises(InputError, match="write the same file; choose one"):
        make_results(("nifti", "nifti-named"))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nifti-named", ("labels.json", "labels.ctbl", "labels.itksnap.txt")),
        ("statistics", ("statistics.csv",)),
        ("viewer", ("index.html",)),
    ],
)
def test_files_of_the_folder_that_others_wrote_stay(
    tmp_path: pathlib.Path, tiny_weights: pathlib.Path, kind: str, names: tuple[str, ...]
) -> None:
    write_phantom(tmp_path / "in" / "x_0000.nii.gz", None, (36, 40, 6), (8.0, 7.0, 40.0))
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tiny_weights), "--save", kind]
    for _ in range(2):  # its own are replaced
        assert CliRunner().invoke(main, arguments).exit_code == 0
    for name in names:
        own = (tmp_path / "out" / name).read_text()
        (tmp_path / "out" / name).write_text("somebody's")
        assert CliRunner().invoke(main, arguments).exit_code == 1
        assert (tmp_path / "out" / name).read_text() == "somebody's"
        (tmp_path / "out" / name).write_text(own)
