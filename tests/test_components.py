"""Largest components, on hand-made geometry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from app.inference.components import keep_largest
from app.organs import ORGANS, Organ, organ_voxels


@pytest.mark.parametrize("order", ["C", "F"])
def test_only_the_largest_stay_and_two_of_the_kidneys(order: str) -> None:
    mask = np.zeros((20, 20, 20), np.uint8, order=order)  # type: ignore[call-overload]
    mask[1:5, 1:5, 1:5] = Organ.LIVER
    mask[4:6, 5:7, 5:7] = Organ.LIVER  # touches the former by a corner: one component
    mask[10, 10, 10] = Organ.LIVER
    mask[0:3, 10:13, 0:3] = Organ.KIDNEYS
    mask[0:3, 15:18, 0:2] = Organ.KIDNEYS
    mask[19, 19, 19] = Organ.KIDNEYS
    mask[8, 8, 0:4] = Organ.PANCREAS
    mask[8, 8, 5:8] = Organ.PANCREAS
    expected = mask.copy()
    expected[10, 10, 10] = expected[19, 19, 19] = 0
    expected[8, 8, 5:8] = 0
    keep_largest(mask)
    np.testing.assert_array_equal(mask, expected)
    assert organ_voxels(mask) == {Organ.LIVER: 72, Organ.KIDNEYS: 45, Organ.SPLEEN: 0, Organ.PANCREAS: 4}


def test_an_empty_mask_and_one_kidney() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    keep_largest(mask)
    assert not mask.any()
    mask[1, 1, 1] = Organ.KIDNEYS
    keep_largest(mask)
    assert mask.sum() == Organ.KIDNEYS


@pytest.mark.parametrize("seed", range(5))
def test_any_mask_is_filtered_as_scipy_would(seed: int) -> None:
    """Sparse noise with empty planes: many stretches, with components of many sizes."""
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(ndimage.zoom(rng.integers(0, 5, (6, 6, 20)), 3, order=0).astype(np.uint8))
    mask[rng.random(mask.shape) < 0.3] = 0
    mask[:, :, rng.random(60) < 0.3] = 0
    before = mask.copy()
    keep_largest(mask)
    for organ in ORGANS:
        components, _ = ndimage.label(before == organ, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        assert np.count_nonzero(mask == organ) == np.sort(sizes)[-organ.components :].sum()
        _, number = ndimage.label(mask == organ, np.ones((3, 3, 3)))
        assert number == min(organ.components, len(sizes))
        assert (before[mask == organ] == organ).all()
