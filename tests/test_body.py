"""The box that holds the organs: nothing of them may be cut off, and little else may be in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from app.hounsfield import WINDOW
from app.inference.body import body_box
from app.strides import LOGITS_STRIDE
from phantom import make_phantom

FAT, MUSCLE, LIVER, BONE = -100.0, 55.0, 110.0, 900.0


def drawn(*ellipses: tuple[float, float, float, float, float], noise_hu: float = 0.0) -> NDArray[np.float32]:
    """A slice of 256 x 320 pixels as network input; ellipses (y, x, radius y, radius x, HU), the last on top."""
    y, x = np.mgrid[:256, :320]
    hounsfield = np.full((256, 320), -1000.0, np.float32)
    for cy, cx, ry, rx, level in ellipses:
        hounsfield[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = level
    hounsfield += noise_hu * np.random.default_rng(0).standard_normal((256, 320), np.float32)
    inputs: NDArray[np.float32] = (hounsfield - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    return inputs.clip(0, 1)[None]


PATIENT = ((120, 160, 90, 130, FAT), (120, 160, 60, 90, MUSCLE), (120, 160, 52, 82, FAT), (110, 110, 30, 30, LIVER))


@pytest.mark.parametrize("noise_hu", [0.0, 60.0])
def test_holds_the_abdominal_wall_and_little_more(noise_hu: float) -> None:
    rows, columns = body_box(drawn(*PATIENT, noise_hu=noise_hu), (1.5, 1.5), WINDOW)
    assert rows.start <= 60
    assert rows.stop >= 180
    assert columns.start <= 70
    assert columns.stop >= 250
    assert (rows.stop - rows.start, columns.stop - columns.start) == (160, 192)  # 120 and 180, and a margin


def test_leaves_the_table_out() -> None:
    table = (230, 160, 2, 150, MUSCLE), (228, 20, 3, 3, BONE), (228, 300, 3, 3, BONE)  # a shell and two rods
    assert body_box(drawn(*PATIENT, *table), (1.5, 1.5), WINDOW) == body_box(drawn(*PATIENT), (1.5, 1.5), WINDOW)


def test_a_fatty_liver_without_a_wall_is_kept() -> None:
    rows, columns = body_box(drawn((128, 160, 60, 60, 0.0)), (1.5, 1.5), WINDOW)
    assert rows.start <= 68
    assert rows.stop >= 188
    assert columns.start <= 100
    assert columns.stop >= 220


def test_several_slices_share_the_box_that_holds_them_all() -> None:
    other = drawn((40, 40, 25, 25, LIVER))
    rows, columns = body_box(np.concatenate([drawn(*PATIENT), other]), (1.5, 1.5), WINDOW)
    assert rows.start <= 15
    assert columns.start <= 15
    assert rows.stop >= 180
    assert columns.stop >= 250


def test_the_whole_slice_where_there_is_no_body() -> None:
    assert body_box(np.zeros((2, 64, 96), np.float32), (1.0, 1.0), WINDOW) == (slice(0, 64), slice(0, 96))


@pytest.mark.parametrize("spacing", [0.5, 1.5, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_cuts_no_organ_and_fits_the_network(seed: int, spacing: float) -> None:
    side = max(32, round(400 / spacing / 32) * 32)
    image, label = make_phantom((side, side, 12), (spacing, spacing, 25.0), seed)
    for z in range(12):
        inputs = ((image[:, :, z].T - WINDOW[0]) / 400).astype(np.float32).clip(0, 1)
        box = body_box(inputs[None], (spacing, spacing), WINDOW)
        for part in box:
            assert (part.stop - part.start) % 32 == 0
            assert part.start % LOGITS_STRIDE == 0
            assert 0 <= part.start < part.stop <= side
        plane = label[:, :, z].T
        assert np.count_nonzero(plane[box]) == np.count_nonzero(plane)
