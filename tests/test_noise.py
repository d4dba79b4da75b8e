"""The measure of noise, against noise of a known size."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from app.inference.noise import noise_hu

SPACING = (0.8, 0.8)


def abdomen(tissue_hu: float = 60.0) -> NDArray[np.float64]:
    """A disc of soft tissue with organs, fat and bone in it, in air."""
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    plane = np.full(y.shape, -1000.0)
    plane[y**2 + x**2 < 0.9] = -100
    plane[y**2 + x**2 < 0.8] = tissue_hu
    plane[(x - 0.4) ** 2 + y**2 < 0.1] = tissue_hu + 60
    plane[(x + 0.3) ** 2 + (y + 0.4) ** 2 < 0.02] = -900
    plane[np.sin(40 * x) * np.sin(40 * y) > 0.9] -= 40
    plane[x**2 + (y - 0.6) ** 2 < 0.02] = 700
    return plane


@pytest.mark.parametrize("sigma_pixels", [0.0, 1.0])
@pytest.mark.parametrize("wanted", [8.0, 20.0, 40.0, 70.0])
def test_it_is_the_standard_deviation_in_soft_tissue_whatever_lies_beside_it(
    wanted: float, sigma_pixels: float
) -> None:
    noise = gaussian_filter(np.random.default_rng(1).standard_normal((400, 400)), sigma_pixels)
    plane = np.rint(abdomen() + wanted / noise.std() * noise).astype(np.int16)
    assert noise_hu(plane, SPACING) == pytest.approx(wanted, rel=0.15, abs=1.5)


def test_borders_alone_are_no_noise() -> None:
    measured = noise_hu(abdomen().astype(np.int16), SPACING)
    assert measured is not None
    assert measured < 3


def test_slices_without_soft_tissue_have_no_measure() -> None:
    noise = np.random.default_rng(2).normal(0, 50, (400, 400))
    for level in (-1000, -100, 900):
        assert noise_hu((noise + level).astype(np.int16), SPACING) is None
    assert noise_hu(np.full((4, 3), 50, np.int16), (0.8, 0.8)) is None  # not even a tile
