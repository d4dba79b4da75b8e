"""Augmentation: geometry, intensity, and the paper's photometric distortion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import pytest
import torch

from app.organs import IGNORE
from tests.tiny import TINY, tiny
from training.augment import augment, coarsen, crop_fields, fade, geometry, grain, intensity, lens, paper_fields
from training.cache import CachedCase
from training.photometric import bgr_to_hsv, hsv_to_bgr, photometric_distortion
from training.sampling import SliceSampler


@pytest.mark.parametrize("make_fields", [crop_fields, paper_fields])
def test_geometry_moves_image_and_label_together(make_fields: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    labels = torch.full((4, 100, 120), IGNORE, dtype=torch.uint8)
    labels[:, 10:90, 10:110] = 0
    labels[:, 30:60, 40:80] = 1
    images = torch.where(labels[:, None] == 1, 200, 50).to(torch.uint8).repeat(1, 3, 1, 1)
    fields = make_fields(torch.tensor([[80.0, 100.0]] * 4), (100, 120), TINY.crops)
    warped, marks = geometry(images, labels, fields)
    assert warped.shape == (4, 3, 64, 48)
    assert set(marks.flatten().tolist()) <= {0, 1, IGNORE}
    inside = warped[:, 1][marks == 1]
    assert (inside > 120).float().mean() > 0.97
    assert (warped[:, 1][marks == 0] < 130).float().mean() > 0.97


@pytest.mark.parametrize("make_fields", [crop_fields, paper_fields])
def test_no_crop_is_mirrored(make_fields: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    fields = make_fields(torch.tensor([[100.0, 100.0]] * 50), (100, 100), tiny(size=(32, 32)).crops)
    right = (fields[:, 16, 31] - fields[:, 16, 0]).double()
    down = (fields[:, 31, 16] - fields[:, 0, 16]).double()
    assert (right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0] > 0).all()  # the handedness stays
    assert (right[:, 0] > 0).all()


def test_the_recipe_says_how_far_organs_are_enlarged() -> None:
    """The width of a crop on the slice is its width in pixels, divided by the factor."""
    torch.manual_seed(0)
    crops = tiny(size=(32, 32), scale=(2.0, 3.0)).crops
    fields = crop_fields(torch.tensor([[400.0, 400.0]] * 200), (400, 400), crops)
    across = (fields[:, 16, 31] - fields[:, 16, 0]) * 400 / 2  # pixels of the slice
    factors = 31 / across.norm(dim=1)
    assert 1.9 < factors.quantile(0.25) < factors.quantile(0.75) < 3.2
    assert factors.quantile(0.75) - factors.quantile(0.25) > 0.3


@pytest.mark.parametrize("power", [0.6, 0.25, -0.4])
def test_a_lens_enlarges_about_its_middle_and_folds_nothing(power: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(201.0), torch.arange(181.0), indexing="ij")
    points = torch.stack([columns, rows], dim=2)[None].repeat(2, 1, 1, 1)
    middle, radius = torch.tensor([[90.0, 100.0]] * 2), torch.tensor([60.0, 80.0])
    bent = lens(points, middle, radius, torch.tensor([power, 0.0]))
    assert torch.equal(bent[1], points[1])
    assert torch.equal(bent[0, 100, 90], middle[0])
    step = bent[0, 100, 91, 0] - 90  # on the slice, for one pixel of the crop
    assert step == pytest.approx(1 - power, abs=0.01)
    far = (points[0] - middle[0]).norm(dim=2) >= 60
    assert torch.equal(bent[0][far], points[0][far])
    across, down = bent[0].diff(dim=1)[:-1], bent[0].diff(dim=0)[:, :-1]
    assert (across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0] > 0).all()


def test_intensity_keeps_the_range_and_the_air() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 3, 32, 32)
    images[:, :, :8] = 0
    changed = intensity(images.clone())
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed[:, :, 8:], images[:, :, 8:])
    assert changed[:, :, :6].mean() < 0.05


@pytest.mark.parametrize("augmentation", ["strong", "paper"])
def test_augment_gives_network_input(cases: list[CachedCase], augmentation: Literal["strong", "paper"]) -> None:
    recipe = tiny(augmentation=augmentation)
    inputs, marks = augment(*SliceSampler(cases, [1.0, 1.0], recipe, seed=0).batch(), recipe.crops)
    assert inputs.shape == (2, 3, 64, 48)
    assert inputs.dtype == torch.float32
    assert marks.dtype == torch.int64


def test_hsv_agrees_with_opencv_and_back() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[1, :, :4] = images[1, :1, :4]  # grey
    hsv = bgr_to_hsv(images)
    for image, found in zip(images, hsv, strict=True):
        expected = cv2.cvtColor(image.movedim(0, 2).contiguous().numpy(), cv2.COLOR_BGR2HSV)
        np.testing.assert_allclose(found.movedim(0, 2).numpy(), expected, atol=2e-3)
    torch.testing.assert_close(hsv_to_bgr(hsv), images, atol=1e-5, rtol=0)


def test_photometric_distortion_keeps_range_and_grey() -> None:
    torch.manual_seed(0)
    grey = torch.rand(16, 1, 8, 8).repeat(1, 3, 1, 1)
    changed = photometric_distortion(grey)
    assert changed.min() >= 0
    assert changed.max() <= 1
    torch.testing.assert_close(changed[:, 0], changed[:, 2], atol=1e-5, rtol=0)  # a grey slice stays grey
    assert 2 <= sum(not torch.allclose(a, b, atol=1e-3) for a, b in zip(grey, changed, strict=True)) <= 16
    colourful = photometric_distortion(torch.rand(16, 3, 8, 8))
    assert colourful.shape == (16, 3, 8, 8)


def test_coarsening_removes_fine_detail_from_some_images_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    fine = (torch.arange(64)[:, None] + torch.arange(48)).remainder(2).float().expand(100, 2, 64, 48)
    coarse = coarsen(fine)
    assert coarse.shape == fine.shape
    changed = (coarse != fine).flatten(1).any(1)
    assert 0.1 < changed.float().mean() < 0.35
    assert coarse[changed].std(dim=(1, 2, 3)).max() < 0.25  # of 0.5
    assert (coarse.mean((1, 2, 3)) - 0.5).abs().max() < 0.02


def test_fading_brings_some_images_nearer_to_their_mean_and_leaves_air() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 2, 16, 24)
    images[..., :4] = 0  # air
    faint = fade(images)
    assert faint.shape == images.shape
    assert (faint[..., :4] == 0).all()
    before, after = images[..., 4:], faint[..., 4:]
    changed = (after != before).flatten(1).any(1)
    assert 0.1 < changed.float().mean() < 0.35
    left = after[changed].std(dim=(1, 2, 3)) / before[changed].std(dim=(1, 2, 3))
    assert 0.39 < left.min() < 0.5
    assert 0.7 < left.max() < 0.81
    assert (after.mean((1, 2, 3)) - before.mean((1, 2, 3))).abs().max() < 1e-4


def test_grain_is_correlated_over_pixels_and_differs_between_channels() -> None:
    torch.manual_seed(0)
    noise = grain(torch.zeros(200, 3, 64, 48))
    noisy = noise[noise.flatten(1).any(1)]
    assert 0.2 < len(noisy) / 200 < 0.4
    deviations = noisy.std(dim=(1, 2, 3)) * 400  # HU
    assert 9 < deviations.min() < 20
    assert 50 < deviations.max() < 61
    variance = noisy.var(dim=(1, 2, 3))
    correlation = (noisy[..., 1:] * noisy[..., :-1]).mean((1, 2, 3)) / variance
    assert correlation.min() > 0.2
    assert correlation.max() > 0.7
    across = (noisy[:, 0] * noisy[:, 1]).mean((1, 2)) / variance
    assert across.abs().max() < 0.2
