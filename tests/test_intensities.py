"""Whether a scan's values look like Hounsfield units: judged by most voxels, not by outliers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from app.inference.intensities import Intensities
from phantom import make_phantom


def phantom_values(change: Callable[[np.ndarray], np.ndarray]) -> Intensities:
    volume = change(make_phantom((96, 96, 12), (4.0, 4.0, 20.0))[0].astype(np.int32))
    found = Intensities()
    for z in range(volume.shape[2]):
        found.add(np.ascontiguousarray(volume[:, :, z].T.clip(-32768, 32767).astype(np.int16)))
    return found


def outlier(volume: np.ndarray, value: int) -> np.ndarray:
    volume[:4, :4, 0] = value
    return volume


def corners(volume: np.ndarray, value: int) -> np.ndarray:
    volume[:12, :12] = volume[-12:, -12:] = value
    return volume


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: volume,
        lambda volume: volume.clip(-125, 275),  # windowed, as many public sets are
        lambda volume: volume.clip(-1024, 3071),
        lambda volume: corners(volume, -2000),
        lambda volume: corners(volume, -3024),
        lambda volume: outlier(volume, 30000),
        lambda volume: np.zeros_like(volume) - 1000,  # only air: there is nothing to judge
    ],
)
def test_hounsfield_units_raise_no_doubt(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert phantom_values(change).doubts() is None


def fill(volume: np.ndarray, slices: slice, value: int) -> np.ndarray:
    volume[:, :, slices] = value
    return volume


@pytest.mark.parametrize(
    ("slices", "value", "count"),
    [
        (slice(8, 12), 0, 4),  # the end of a file that was not copied to its end
        (slice(0, 3), 0, 3),
        (slice(5, 7), -1024, 2),  # as zeros are with an offset
        *((slice(0, 3), -1024, 0), (slice(9, 12), -3024, 0)),  # padding
    ],
)
def test_slices_of_one_value_are_doubted(slices: slice, value: int, count: int) -> None:
    """Between others, or of a value that the body has."""
    doubt = phantom_values(lambda volume: fill(volume, slices, value)).doubts()
    assert doubt is None if not count else str(doubt).startswith(f"{count} slices have one value throughout")


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: volume + 1024,
        lambda volume: volume + 1000,  # the noise of air reaches the values of fat
        lambda volume: corners(volume + 1024, -2000),
        lambda volume: corners(volume + 1024, -1024),
        lambda volume: outlier(volume + 1024, -1000),
    ],
)
def test_an_offset_that_was_not_applied_is_named(change: Callable[[np.ndarray], np.ndarray]) -> None:
    doubt = phantom_values(change).doubts()
    assert doubt is not None
    assert "do not look like Hounsfield units" in doubt
    assert "subtract 1024, the offset that was not applied" in doubt


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: (volume.clip(-125, 275) + 125) * 255 // 400,  # 8 bits
        lambda volume: outlier((volume.clip(-125, 275) + 125) * 255 // 400, -500),
        lambda volume: np.sign(volume),  # -1..1
        lambda volume: volume // 20,
        lambda volume: np.where(volume < -900, volume + 4096, volume),  # air as 12 bits without a sign
    ],
)
def test_other_scales_are_doubted(change: Callable[[np.ndarray], np.ndarray]) -> None:
    doubt = phantom_values(change).doubts()
    assert doubt is not None
    assert "check the scan's rescaling" in doubt


def noisy(volume: np.ndarray, sigma: float) -> np.ndarray:
    return volume + np.random.default_rng(0).normal(0, sigma, volume.shape).astype(np.int32)


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: -volume,
        lambda volume: -noisy(volume, 50),
        lambda volume: -corners(noisy(volume, 20).clip(-1024), -1024),
        lambda volume: -corners(noisy(volume, 20).clip(-1024), -2000),
        lambda volume: 3071 - volume,  # 12 bits without a sign
        lambda volume: 2047 - volume,
        lambda volume: 1024 - volume,
    ],
)
def test_inverted_values_have_no_offset_to_subtract(change: Callable[[np.ndarray], np.ndarray]) -> None:
    doubt = phantom_values(change).doubts()
    assert doubt is not None
    assert "subtract" not in doubt
    assert "inverted" in doubt
