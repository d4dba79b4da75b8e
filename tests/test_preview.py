"""The picture of a case: organs where they belong, from any orientation, and its place among the outputs."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from app.cli import main
from app.organs import ORGANS, Organ
from app.results.preview import GAP, LINE, Preview, preview
from app.volumes import open_volume
from app.volumes.nifti import open_nifti
from phantom import write_phantom
from tests.test_statistics import gathered
from tests.tiny import segmentation_of


def written(folder: pathlib.Path, axes: str) -> tuple[pathlib.Path, pathlib.Path]:
    """A phantom and its label."""
    image, label = folder / "x_0000.nii.gz", folder / "x.nii.gz"
    write_phantom(image, label, (100, 90, 40), (3.9, 3.7, 6.0), axes=axes)
    return image, label


def picture(folder: pathlib.Path, axes: str, organs: tuple[Organ, ...] = ORGANS) -> np.ndarray:
    image, label = written(folder, axes)
    volume = open_volume(image)
    mask = np.asarray(nib.load(label).dataobj).copy(order="F")
    mask[~np.isin(mask, organs)] = 0
    gathering = gathered(volume, volume.geometry.orient(mask))
    return np.asarray(preview(segmentation_of(volume, mask, gathering=gathering))).astype(int)


def places(pixels: np.ndarray, organ: Organ) -> np.ndarray:
    """Rows and columns with the colour of an organ, nearly."""
    return np.argwhere(np.abs(pixels - organ.rgb).sum(2) < 60)


def test_a_legend_that_is_too_long_takes_two_lines(tmp_path: pathlib.Path) -> None:
    image, label = written(tmp_path, "LPS")
    volume, mask = open_volume(image), np.asarray(nib.load(label).dataobj)
    gathering = gathered(volume, volume.geometry.orient(mask))
    pages = []
    for ml in (1.0, 1e15):
        case = segmentation_of(volume, mask, gathering=gathering)
        vars(case)["volumes_ml"] = dict.fromkeys(ORGANS, ml)
        pages.append(np.asarray(preview(case)))
    one, two = pages
    assert len(two) == len(one) + LINE
    legend = two[-2 * LINE - GAP :]
    for organ in ORGANS:
        assert (legend == organ.rgb).all(2).sum() == 15 * 15
    assert not legend[:, -GAP:].any()  # nothing runs off the page


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR"])
def test_organs_lie_as_on_a_radiologists_screen(tmp_path: pathlib.Path, axes: str) -> None:
    pixels = picture(tmp_path, axes)
    assert pixels.shape[1] == 1000
    legend = pixels.shape[0] - 40
    drawn = {organ: (found := places(pixels, organ))[found[:, 0] < legend] for organ in ORGANS}
    assert all(len(found) > 40 for found in drawn.values())
    first_panel = {organ: found[found[:, 1] < 330] for organ, found in drawn.items()}
    liver, spleen = (first_panel[organ][:, 1].mean() for organ in (Organ.LIVER, Organ.SPLEEN))
    assert liver < spleen  # the patient's right is on the left
    for organ in ORGANS:
        assert (places(pixels, organ)[:, 0] > legend).any()


def test_the_same_patient_gives_the_same_picture_in_every_orientation(tmp_path: pathlib.Path) -> None:
    for axes in ("LPS", "PIR"):
        (tmp_path / axes).mkdir()
    one, other = (picture(tmp_path / axes, axes) for axes in ("LPS", "PIR"))
    np.testing.assert_array_equal(one, other)


def test_letters_of_directions_are_left_out_where_they_are_not_known(tmp_path: pathlib.Path) -> None:
    volume = open_nifti(written(tmp_path, "LAS")[0])
    mask = np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj)
    pictures = []
    for known in (True, False):
        seen = replace(volume, geometry=replace(volume.geometry, orientation_known=known))
        gathering = gathered(seen, seen.geometry.orient(mask))
        pictures.append(np.asarray(preview(segmentation_of(seen, mask, gathering=gathering))))
    lettered = np.argwhere((pictures[0] != pictures[1]).any(2))
    assert len(lettered) > 20
    assert (pictures[0][tuple(lettered.T)].max(1) > 200).any()


def test_a_missing_organ_and_no_organ(tmp_path: pathlib.Path) -> None:
    pixels = picture(tmp_path, "LPS", (Organ.LIVER,))
    assert not len(places(pixels[:-40], Organ.SPLEEN))
    assert picture(tmp_path, "LPS", ()).shape[0] < 100


def test_it_knows_its_own_pictures(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    write_phantom(tmp_path / "in" / "x_0000.nii.gz", None, (72, 80, 12), (4.0, 3.5, 20.0))
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tiny_weights), "--save", "preview"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    written = tmp_path / "out" / "x.preview.png"
    assert Preview().wrote(written)
    assert not (tmp_path / "out" / "x.nii.gz").exists()
    (tmp_path / "out" / "run_log.jsonl").unlink()
    assert CliRunner().invoke(main, arguments).exit_code == 0
    Image.new("RGB", (9, 9)).save(written)
    (tmp_path / "out" / "run_log.jsonl").unlink()
    assert CliRunner().invoke(main, arguments).exit_code == 1
    assert not Preview().wrote(written)
