"""Left and right kidney: on the patient's own side in every view, or not told apart, and never on the wrong side."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from app.hounsfield import AIR
from app.organs import Organ
from app.results.statistics import statistics
from app.volumes import open_image
from phantom import make_phantom
from tests.nifti_files import ORIENTATIONS
from tests.test_statistics import gathered
from tests.tiny import segmentation_of

SHAPE, SPACING = (110, 84, 26), (3.6, 4.0, 10.0)
MIDDLE = SHAPE[0] // 2
AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])  # LPS

Scan = tuple[NDArray[np.int16], NDArray[np.uint8]]


@pytest.fixture(scope="module", params=[4, 11])
def scan(request: pytest.FixtureRequest) -> Scan:
    """Hounsfield units and labels of a phantom, (x, y, z) in LPS order."""
    return make_phantom(SHAPE, SPACING, request.param)


def found(hounsfield: NDArray[np.int16], labels: NDArray[np.uint8], affine: NDArray[np.float64] = AFFINE) -> Any:  # noqa: ANN401
    """The statistics of a scan in memory."""
    volume = open_image(hounsfield, affine)
    mask = np.asfortranarray(labels)
    gathering = gathered(volume, volume.geometry.orient(mask))
    return statistics(segmentation_of(volume, mask, gathering=gathering))


def sides(case: Any) -> tuple[int | None, int | None]:  # noqa: ANN401
    """Voxels of the left and of the right kidney."""
    return case["kidneys"]["left"]["voxels"], case["kidneys"]["right"]["voxels"]


def expected(labels: NDArray[np.uint8], first: int = 0) -> tuple[int, int]:
    """The same, for labels whose first column is that of the whole phantom."""
    columns = (labels == Organ.KIDNEYS).sum((1, 2))
    return int(columns[max(0, MIDDLE - first) :].sum()), int(columns[: max(0, MIDDLE - first)].sum())


def without_spine(scan: Scan) -> Scan:
    """The phantom with bone turned to muscle."""
    return np.where((scan[0] > 150) & (scan[1] == 0), np.int16(55), scan[0]), scan[1]


def with_kidneys(labels: NDArray[np.uint8], kidneys: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(kidneys, Organ.KIDNEYS, np.where(labels == Organ.KIDNEYS, 0, labels)).astype(np.uint8)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_in_every_stored_order(scan: Scan, axes: str) -> None:
    lps, wanted = (nib.orientations.axcodes2ornt(codes) for codes in ("LPS", axes))
    turn = nib.orientations.ornt_transform(lps, wanted)
    hounsfield, labels = (nib.orientations.apply_orientation(volume, turn) for volume in scan)
    case = found(hounsfield, labels, AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE))
    assert sides(case) == expected(scan[1])
    assert case["kidneys_told_apart_by"] == "spine"
    assert case["kidneys"]["left"]["centre_ras_mm"][0] < case["kidneys"]["right"]["centre_ras_mm"][0]


@pytest.mark.parametrize("spine", [True, False])
@pytest.mark.parametrize("from_middle", [-34, -24, -14, -8, -3, 0, 3, 8, 14, 24, 34])
@pytest.mark.parametrize("kept", ["left", "right"])
def test_with_a_part_of_the_body_in_view(scan: Scan, kept: str, from_middle: int, spine: bool) -> None:
    """Whatever is cut off: every voxel on its side, or not told apart; and told where an organ can tell."""
    hounsfield, labels = scan if spine else without_spine(scan)
    cut = MIDDLE + from_middle
    view = slice(cut, None) if kept == "left" else slice(None, cut)
    case = found(hounsfield[view], labels[view])
    wanted = expected(labels[view], cut if kept == "left" else 0)
    if case["kidneys_told_apart_by"] is None:
        assert sides(case) == ((0, 0) if wanted == (0, 0) else (None, None))
    else:
        assert sides(case) == wanted
    is_told = any("not told apart" in warning for warning in case["warnings"])
    assert is_told == (sides(case) == (None, None))
    outside = from_middle if kept == "left" else -from_middle  # columns that are cut off beyond the middle
    if wanted != (0, 0) and outside <= -24:
        assert case["kidneys_told_apart_by"] == ("spine" if spine else "gap")
    elif wanted != (0, 0) and outside <= 8 and spine:
        assert case["kidneys_told_apart_by"] in ("spine", "spleen", "liver")


@pytest.mark.parametrize("kept", ["left", "right"])
def test_by_the_neighbour_where_nothing_else_is_in_view(scan: Scan, kept: str) -> None:
    beyond = 9  # columns, 32 mm: no spine
    view = slice(MIDDLE + beyond, None) if kept == "left" else slice(None, MIDDLE - beyond)
    hounsfield, labels = scan[0][view], scan[1][view].copy()
    case = found(hounsfield, labels)
    assert case["kidneys_told_apart_by"] == ("spleen" if kept == "left" else "liver")
    assert sides(case) == expected(labels, MIDDLE + beyond if kept == "left" else 0)
    labels[(labels == Organ.SPLEEN) | (labels == Organ.LIVER)] = 0
    case = found(hounsfield, labels)
    assert (case["kidneys_told_apart_by"], sides(case)) == (None, (None, None))
    assert "neither the spine nor both sides of the body are in view" in " ".join(case["warnings"])


@pytest.mark.parametrize("spine", [True, False])
@pytest.mark.parametrize("missing", ["left", "right"])
def test_one_kidney(scan: Scan, missing: str, spine: bool) -> None:
    hounsfield, labels = scan if spine else without_spine(scan)
    is_left = (np.arange(SHAPE[0]) >= MIDDLE)[:, None, None]
    one = with_kidneys(labels, (labels == Organ.KIDNEYS) & (is_left != (missing == "left")))
    case = found(np.where(one == labels, hounsfield, np.int16(30)), one)
    assert case["kidneys_told_apart_by"] == ("spine" if spine else "body")
    assert sides(case) == expected(one)
    assert 0 in sides(case)


@pytest.mark.parametrize("spine", [True, False])
def test_a_horseshoe_kidney_is_cut_in_the_middle(scan: Scan, spine: bool) -> None:
    hounsfield, labels = scan if spine else without_spine(scan)
    kidneys = labels == Organ.KIDNEYS
    low = int(np.flatnonzero(kidneys.any((0, 1)))[1])
    row = int(np.flatnonzero(kidneys[:, :, low].any(0))[0])
    kidneys[MIDDLE - 20 : MIDDLE + 20, row - 3 : row + 1, low : low + 2] = True  # in front of the spine
    horseshoe = with_kidneys(labels, kidneys)
    case = found(hounsfield, horseshoe)
    assert case["kidneys_told_apart_by"] == ("spine" if spine else "body")
    for got, wanted in zip(sides(case), expected(horseshoe), strict=True):
        assert got == pytest.approx(wanted, rel=0.04)
    assert sum(n or 0 for n in sides(case)) == kidneys.sum()


def test_no_kidney_is_no_volume_and_no_warning(scan: Scan) -> None:
    case = found(scan[0], with_kidneys(scan[1], np.zeros(SHAPE, bool)))
    assert (sides(case), case["kidneys_told_apart_by"]) == ((0, 0), None)
    assert not any("told apart" in warning for warning in case["warnings"])


def turned(affine: NDArray[np.float64], *, degrees: float, axis: int) -> NDArray[np.float64]:
    """An affine of a patient who lies turned about an axis."""
    angle, others = np.deg2rad(degrees), [a for a in range(3) if a != axis]
    turn = np.eye(4)
    turn[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize(("axis", "degrees"), [(2, 20), (2, -20), (1, 15), (1, -15), (0, 25)])
def test_in_an_oblique_scan(scan: Scan, axis: int, degrees: float) -> None:
    case = found(*scan, turned(AFFINE, degrees=degrees, axis=axis))
    assert sides(case) == expected(scan[1])


@pytest.mark.parametrize("header", ["right", "wrong"])
@pytest.mark.parametrize("lies", ["left side down", "right side down", "feet first", "mirrored"])
def test_decubitus_and_feet_first(scan: Scan, lies: str, header: str) -> None:
    """As the scanner stores it, with a header that knows how the patient lies, and with one that does not."""
    hounsfield, labels = scan
    affine = AFFINE
    if lies in ("left side down", "right side down"):
        k = 1 if lies == "left side down" else -1
        hounsfield, labels = np.rot90(hounsfield, k, axes=(0, 1)), np.rot90(labels, k, axes=(0, 1))
        affine = AFFINE @ [[0, k, 0, 0], [-k, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    elif lies == "feet first":
        hounsfield, labels = hounsfield[::-1, :, ::-1], labels[::-1, :, ::-1]
        affine = AFFINE @ np.diag([-1, 1, -1, 1])
    else:
        hounsfield, labels = hounsfield[::-1], labels[::-1]
        affine = AFFINE @ np.diag([-1, 1, 1, 1])
    if header == "wrong":
        affine = np.diag([-1.0, -1, 1, 1]) * np.abs(affine).sum(0)
    case = found(hounsfield, labels, affine)
    if header == "right":
        assert sides(case) == expected(scan[1])
        assert case["kidneys_told_apart_by"] == "spine"
    else:
        assert (case["kidneys_told_apart_by"], sides(case)) == (None, (None, None))
        assert any("not told apart" in warning for warning in case["warnings"])


def test_bright_arms_and_bowel_beside_the_body_are_no_spine(scan: Scan) -> None:
    hounsfield, labels = scan[0].copy(), scan[1]
    rows = np.flatnonzero((labels == Organ.KIDNEYS).any((0, 2)))
    hounsfield[-12:-4, rows[0] : rows[0] + 4] = 600  # an arm, in front of the kidneys' centre
    case = found(hounsfield, labels)
    assert sides(case) == expected(labels)


def test_a_scan_that_does_not_say_where_left_is(scan: Scan) -> None:
    image = nib.Nifti1Image(scan[0], None)
    image.header.set_zooms(SPACING)
    volume = open_image(image)
    mask = np.asfortranarray(scan[1])
    case = statistics(segmentation_of(volume, mask, gathering=gathered(volume, volume.geometry.orient(mask))))
    assert case["orientation_known"] is False
    assert (case["kidneys_told_apart_by"], sides(case)) == (None, (None, None))
    assert case["organs"]["kidneys"]["voxels"] == (mask == Organ.KIDNEYS).sum()
    assert case["kidneys"]["left"].keys() == found(*scan)["kidneys"]["left"].keys()
    assert "the scan's orientation is not known" in " ".join(case["warnings"])


def test_padding_around_a_round_view_of_half_the_body_is_no_outside(scan: Scan) -> None:
    """Where the reconstruction is round, corners are padded: they are no air beside the patient."""
    view = slice(MIDDLE + 9, None)
    hounsfield, labels = without_spine((scan[0][view].copy(), scan[1][view].copy()))
    labels[(labels == Organ.SPLEEN) | (labels == Organ.LIVER)] = 0
    columns, rows = hounsfield.shape[:2]
    x, y = np.ogrid[:columns, :rows]
    outside = ((x - columns / 2 + 0.5) / (columns / 2)) ** 2 + ((y - rows / 2 + 0.5) / (rows / 2)) ** 2 > 1
    hounsfield[outside], labels[outside] = AIR, 0
    assert sides(found(hounsfield, labels)) in ((None, None), expected(labels, MIDDLE + 9))
