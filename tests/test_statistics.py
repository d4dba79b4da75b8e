"""Numbers of organs: equal to what numpy makes of scan and mask, in any orientation, and gathered in one pass."""

from __future__ import annotations

import csv
import json
import pathlib
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from app.cli import main
from app.inference.gathering import Gathering
from app.organs import ORGANS, Organ
from app.results.statistics import statistics
from app.volumes import Volume, open_volume
from phantom import write_phantom
from tests.tiny import segmentation_of

SHAPE, SPACING = (100, 90, 24), (3.9, 3.7, 11.0)
AXES = ["LPS", "RAS", "LAS", "SPL", "PIR", "ASR", "RPI"]


def gathered(volume: Volume, labels_zyx: NDArray[np.uint8], order: int = 1) -> Gathering:
    """What a loop over the slices would have gathered, labels known a few slices late."""
    gathering = Gathering(volume.geometry)
    planes = dict(volume.slices())
    late: list[int] = []
    for z in sorted(planes)[::order]:
        gathering.see(z, planes[z])
        late.append(z)
        if len(late) > 3:
            gathering.labelled(late[0], labels_zyx[late.pop(0)])
    gathering.finish(labels_zyx)
    return gathering


def found_by(volume: Volume, mask: NDArray[np.uint8], order: int = 1) -> dict[str, Any]:
    gathering = gathered(volume, volume.geometry.orient(mask), order)
    return statistics(segmentation_of(volume, mask, gathering=gathering))


def load(folder: pathlib.Path, axes: str) -> tuple[Volume, NDArray[np.uint8], NDArray[np.float64]]:
    """The phantom in an orientation: scan, label in stored order, and the scan's values in stored order."""
    image, label = folder / f"{axes}_0000.nii.gz", folder / f"{axes}.nii.gz"
    write_phantom(image, label, SHAPE, SPACING, axes=axes)
    return open_volume(image), np.asarray(nib.load(label).dataobj), np.asarray(nib.load(image).dataobj)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("order", [1, -1])
def test_every_number_is_numpys(tmp_path: pathlib.Path, axes: str, order: int) -> None:
    volume, mask, hounsfield = load(tmp_path, axes)
    rows = found_by(volume, mask, order)["organs"]
    affine = volume.geometry.affine
    for organ in ORGANS:
        row, inside = rows[organ.key], mask == organ
        values = hounsfield[inside].astype(float)
        assert row["voxels"] == inside.sum()
        assert row["volume_ml"] == pytest.approx(inside.sum() * np.prod(SPACING) / 1000, abs=0.01)
        expected = [values.mean(), values.std(), *np.percentile(values, (5, 50, 95))]
        assert [row[f"{name}_hu"] for name in ("mean", "sd", "p05", "median", "p95")] == pytest.approx(
            expected, abs=0.06
        )
        places = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(row["centre_ras_mm"], places.mean(0), atol=0.02)
        np.testing.assert_allclose(row["box_ras_mm"], [places.min(0), places.max(0)], atol=0.02)
        assert row["touches_border"] == []


@pytest.mark.parametrize("axes", AXES)
def test_left_is_the_patients_left(tmp_path: pathlib.Path, axes: str) -> None:
    volume, mask, _ = load(tmp_path, axes)
    kidneys = found_by(volume, mask)["kidneys"]
    whole = (mask == Organ.KIDNEYS).sum()
    assert kidneys["left"]["voxels"] + kidneys["right"]["voxels"] == whole
    assert 0.3 < kidneys["left"]["voxels"] / whole < 0.7
    assert kidneys["left"]["centre_ras_mm"][0] < -30 < 30 < kidneys["right"]["centre_ras_mm"][0]  # RAS: right is +


@pytest.mark.parametrize("axes", AXES)
def test_a_cut_organ_names_the_side(tmp_path: pathlib.Path, axes: str) -> None:
    volume, mask, _ = load(tmp_path, axes)
    oriented = volume.geometry.orient(mask)
    oriented[oriented == Organ.SPLEEN] = 0
    oriented[-1, 40:44, 50:54] = oriented[10, 40:44, -1] = Organ.SPLEEN
    rows = found_by(volume, mask)["organs"]
    assert rows["spleen"]["touches_border"] == ["superior", "left"]
    assert rows["liver"]["touches_border"] == []


def test_missing_organs_are_null_and_no_failure(tmp_path: pathlib.Path) -> None:
    volume, mask, _ = load(tmp_path, "LPS")
    found = found_by(volume, np.where(mask == Organ.LIVER, mask, 0).astype(np.uint8))
    assert found["organs"]["spleen"]["voxels"] == 0
    assert found["organs"]["spleen"]["mean_hu"] is found["liver_minus_spleen_hu"] is None
    assert found["kidneys"]["left"]["centre_ras_mm"] is None
    json.dumps(found, allow_nan=False)


def test_removed_components_count_no_more(tmp_path: pathlib.Path) -> None:
    """Labels may vanish between the passing of the slices and the statistics."""
    volume, mask, hounsfield = load(tmp_path, "LPS")
    noisy = mask.copy(order="F")
    noisy[0:3, 0:3] = Organ.LIVER
    gathering = gathered(volume, volume.geometry.orient(noisy))
    row = statistics(segmentation_of(volume, mask, gathering=gathering))["organs"]["liver"]
    assert row["mean_hu"] == pytest.approx(hounsfield[mask == Organ.LIVER].mean(), abs=0.06)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL"])
def test_the_small_copy_lies_where_the_scan_lies(tmp_path: pathlib.Path, axes: str) -> None:
    image, label = tmp_path / "x_0000.nii.gz", tmp_path / "x.nii.gz"
    write_phantom(image, label, (200, 180, 60), (1.6, 0.7, 0.8), axes=axes)
    volume, mask = open_volume(image), np.asarray(nib.load(label).dataobj)
    small = gathered(volume, volume.geometry.orient(mask)).reduced(volume.geometry.orient(mask))
    assert small is not None
    assert small.spacing_zyx_mm == pytest.approx((1.6, 1.4, 1.6))
    assert small.hounsfield.shape == small.labels.shape
    for organ in ORGANS:
        places = np.argwhere(small.labels == organ)[:, ::-1] @ small.affine[:3, :3].T + small.affine[:3, 3]
        whole = np.argwhere(mask == organ) @ volume.geometry.affine[:3, :3].T + volume.geometry.affine[:3, 3]
        np.testing.assert_allclose(places.mean(0), whole.mean(0), atol=0.6)
    hounsfield = np.asarray(nib.load(image).dataobj)
    for organ in (Organ.LIVER, Organ.KIDNEYS):  # the median, for blocks on the border are mixed
        median = np.median(small.hounsfield[small.labels == organ])
        assert median == pytest.approx(np.median(hounsfield[mask == organ]), abs=4)


def test_slices_far_from_organs_are_not_kept(tmp_path: pathlib.Path) -> None:
    image, label = tmp_path / "x_0000.nii.gz", tmp_path / "x.nii.gz"
    write_phantom(image, label, (64, 64, 400), (6.0, 6.0, 3.0))
    volume, mask = open_volume(image), np.asarray(nib.load(label).dataobj)
    small = gathered(volume, volume.geometry.orient(mask)).reduced(volume.geometry.orient(mask))
    assert small is not None
    with_organs = np.flatnonzero(mask.any((0, 1)))
    assert len(small.hounsfield) * 1.5 <= (len(with_organs) + 42) * 3.0


def test_the_command_line_writes_a_file_per_case_and_one_table(
    tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(2):
        write_phantom(tmp_path / "in" / f"p{seed}_0000.nii.gz", None, SHAPE, SPACING, axes="RAS", seed=seed)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tiny_weights), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--save", "nifti", "--save", "statistics"])
    assert result.exit_code == 0, result.output
    for seed in range(2):
        found = json.loads((tmp_path / "out" / f"p{seed}.statistics.json").read_text())
        mask = np.asarray(nib.load(tmp_path / "out" / f"p{seed}.nii.gz").dataobj)
        hounsfield = np.asarray(nib.load(tmp_path / "in" / f"p{seed}_0000.nii.gz").dataobj)
        for organ in ORGANS:
            row, inside = found["organs"][organ.key], mask == organ
            assert row["voxels"] == inside.sum()
            if inside.any():
                assert row["mean_hu"] == pytest.approx(hounsfield[inside].mean(), abs=0.06)
                assert 0 < row["confidence"] <= 1
    with (tmp_path / "out" / "statistics.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["organ"] for row in rows] == [
        *(organ.key for organ in ORGANS),
        "left kidney",
        "right kidney",
    ] * 2
    assert rows[0]["volume_ml"] == str(
        json.loads((tmp_path / "out" / "p0.statistics.json").read_text())["organs"]["liver"]["volume_ml"]
    )
