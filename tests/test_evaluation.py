"""DSC and NSD against values computed here in another way, the organisers' rules, and what cannot be scored."""

from __future__ import annotations

import csv
import pathlib
import re
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from app.organs import Organ
from evaluation.__main__ import main
from evaluation.accuracy import EvaluationError, bootstrap_interval, evaluate, evaluate_case
from evaluation.figures import ORGAN_COLORS
from evaluation.labels import LabelError
from evaluation.metrics import PROTOCOLS, Score, score_case, score_organ

FLARE21 = PROTOCOLS["flare21"]


def brute_surface_dice(truth: NDArray[Any], found: NDArray[Any], spacing: tuple[float, ...], tolerance: float) -> float:
    """Surface Dice by comparing every surface element with every other; only their areas come from the library's table.

    A surface element sits on a corner between eight voxels that are not all alike.
    """
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    areas = create_table_neighbour_code_to_surface_area(spacing)

    def corners(mask: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        padded = np.pad(mask, 1).astype(int)
        code = np.zeros(np.array(padded.shape) - 1, int)
        for bit, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
            x, y, z = padded.shape
            code += padded[i : x - 1 + i, j : y - 1 + j, k : z - 1 + k] << (7 - bit)
        at = np.argwhere((code > 0) & (code < 255))
        return at * np.array(spacing), np.array([areas[code[tuple(p)]] for p in at])

    (points_a, area_a), (points_b, area_b) = corners(truth), corners(found)
    distances = np.linalg.norm(points_a[:, None] - points_b[None], axis=2)
    near = area_a[distances.min(1) <= tolerance].sum() + area_b[distances.min(0) <= tolerance].sum()
    return float(near / (area_a.sum() + area_b.sum()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5)])
def test_random_volumes(seed: int, spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    truth, found = (rng.random((7, 8, 6)) < share for share in (0.3, 0.4))
    score = score_organ(truth, found, spacing, 1.0)
    both = sum(bool(a) and bool(b) for a, b in zip(truth.flat, found.flat, strict=True))
    assert score.dice == pytest.approx(2 * both / (int(truth.sum()) + int(found.sum())), abs=1e-6)
    assert score.surface_dice == pytest.approx(brute_surface_dice(truth, found, spacing, 1.0), abs=1e-6)


@pytest.mark.parametrize(
    ("shift", "tolerance", "expected"),
    [(0, 1.0, 1.0), (1, 1.0, 1.0), (1, 0.9, None), (3, 1.0, None)],
)
def test_a_shifted_block(shift: int, tolerance: float, expected: float | None) -> None:
    """A block of 6 x 6 x 6 mm, shifted along x: within 1 mm both surfaces are near, beyond it the end faces are not."""
    truth, found = np.zeros((14, 10, 10), bool), np.zeros((14, 10, 10), bool)
    truth[2:8, 2:8, 2:8] = True
    found[2 + shift : 8 + shift, 2:8, 2:8] = True
    score = score_organ(truth, found, (1.0, 1.0, 1.0), tolerance)
    assert score.dice == pytest.approx((6 - shift) / 6, abs=1e-6)
    brute = brute_surface_dice(truth, found, (1.0, 1.0, 1.0), tolerance)
    assert score.surface_dice == pytest.approx(brute if expected is None else expected, abs=1e-6)


def test_one_voxel_the_border_and_a_slab() -> None:
    one = np.zeros((5, 5, 5), bool)
    one[0, 0, 0] = True  # touches the border
    assert score_organ(one, one, (1.0, 1.0, 5.0), 1.0) == Score(1.0, 1.0)
    slab = np.ones((5, 5, 1), bool)
    assert score_organ(slab, slab, (0.5, 0.5, 10.0), 1.0) == Score(1.0, 1.0)
    other = np.zeros((5, 5, 5), bool)
    other[4, 4, 4] = True
    assert score_organ(one, other, (1.0, 1.0, 1.0), 1.0) == Score(0.0, 0.0)


def test_the_organisers_rules_for_empty_masks() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert score_organ(empty, empty, (1.0, 1.0, 1.0), 1.0) == Score(1.0, 1.0)
    assert score_organ(empty, full, (1.0, 1.0, 1.0), 1.0) == Score(0.0, 0.0)
    assert score_organ(full, empty, (1.0, 1.0, 1.0), 1.0) == Score(0.0, 0.0)


def test_flare22_tolerances_and_its_least_dice() -> None:
    protocol = PROTOCOLS["flare22"]
    truth = np.zeros((30, 10, 10), np.uint8)
    truth[5:15, 2:8, 2:8] = Organ.KIDNEYS
    found = np.roll(truth, 3, axis=0)
    assert score_case(truth, found, (1.0, 1.0, 1.0), protocol)[Organ.KIDNEYS].surface_dice == 1.0  # 3 mm
    assert score_case(truth, found, (1.0, 1.0, 1.0), FLARE21)[Organ.KIDNEYS].surface_dice < 1.0
    found = np.roll(truth, 9, axis=0)  # DSC 0.1
    score = score_case(truth, found, (1.0, 1.0, 1.0), protocol)[Organ.KIDNEYS]
    assert score.dice == pytest.approx(0.1)
    assert score.surface_dice == 0.0
    assert score_case(truth, found, (1.0, 1.0, 1.0), FLARE21)[Organ.KIDNEYS].surface_dice > 0.0


def test_what_nobody_annotated_is_left_out() -> None:
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[:3] = Organ.LIVER
    truth[4:] = 255
    found = np.zeros_like(truth)
    found[:3] = found[4:] = Organ.LIVER
    assert score_case(truth, found, (1.0, 1.0, 1.0), FLARE21)[Organ.LIVER] == Score(1.0, 1.0)


def test_the_bootstrap_interval_holds_the_mean() -> None:
    sample = np.array([0.7, 0.8, 0.9, 0.95])
    low, high = bootstrap_interval(sample)
    assert 0.7 <= low < sample.mean() < high <= 0.95
    assert bootstrap_interval(np.array([0.5])) == (0.5, 0.5)


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Predictions and references of two cases; the second has no prediction."""
    predictions, references = tmp_path / "p", tmp_path / "r"
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:4], labels[4:6], labels[6], labels[7] = 1, 2, 3, 4
    for folder, names in ((predictions, ["a"]), (references, ["a", "b"])):
        folder.mkdir()
        for name in names:
            nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"{name}.nii.gz")
    return predictions, references


def test_a_missing_prediction_counts_as_zero_and_is_named(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    result = CliRunner().invoke(main, ["accuracy", *map(str, folders), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert "no prediction for b, scored 0" in result.output
    rows = list(csv.reader((tmp_path / "report" / "scores.csv").read_text().splitlines()))
    assert ",".join(rows[0]) == "Name,DSC_1,NSD-1mm_1,DSC_2,NSD-1mm_2,DSC_3,NSD-1mm_3,DSC_4,NSD-1mm_4"
    assert rows[1] == ["a.nii.gz", *["1.0000"] * 8]
    assert rows[2] == ["b.nii.gz", *["0.0000"] * 8]
    assert "| liver | 50.00 ± 70.71 | 50.00 ± 70.71 | 1 mm | 50.00 | 0.00 .. 100.00 |" in result.output


@pytest.mark.parametrize(
    ("labels", "affine", "line"),
    [
        (np.zeros((8, 8, 7), np.uint8), np.eye(4), "shape (8, 8, 7), the reference has (8, 8, 8); resample it onto"),
        (np.zeros((8, 8, 8), np.uint8), np.diag([2.0, 1, 1, 1]), "its affine is not the reference's; resample it onto"),
        (np.full((8, 8, 8), 7, np.uint8), np.eye(4), "holds the value 7; labels are 0, 1, 2, 3, 4"),
        (np.full((8, 8, 8), 0.5, np.float32), np.eye(4), "holds the value 0.5; labels are 0, 1, 2, 3, 4"),
    ],
)
def test_what_cannot_be_scored_names_the_case(
    folders: tuple[pathlib.Path, pathlib.Path], labels: NDArray[Any], affine: NDArray[Any], line: str
) -> None:
    predictions, references = folders
    nib.save(nib.Nifti1Image(labels, affine), predictions / "a.nii.gz")
    with pytest.raises(LabelError, match=re.escape(f"{predictions}/a.nii.gz: {line}")):
        evaluate_case(references / "a.nii.gz", predictions, FLARE21)


def test_no_references_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EvaluationError, match=r"no \.nii\.gz references"):
        evaluate(tmp_path, tmp_path, FLARE21)


def test_a_picture_of_a_scan_and_its_mask(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    mask, picture = phantom_path.with_name("phantom.nii.gz"), tmp_path / "picture.png"
    result = CliRunner().invoke(main, ["picture", str(phantom_path), str(mask), str(picture)])
    assert result.exit_code == 0, result.output
    pixels = cv2.imread(str(picture)).reshape(-1, 3)[:, ::-1]
    for color in ORGAN_COLORS.values():
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels.astype(int) - rgb).max(1) < 12).sum() > 100, color
    result = CliRunner().invoke(main, ["picture", str(phantom_path), str(phantom_path), str(picture)])
    assert result.exit_code == 1
    assert "labels are 0, 1, 2, 3, 4" in result.output
