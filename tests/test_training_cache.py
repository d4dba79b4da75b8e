"""The cache of training slices, and the batches drawn from it."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from app.organs import IGNORE
from phantom import write_phantom
from tests.tiny import TINY, tiny
from training.cache import CachedCase, DataError, load_cases
from training.sampling import SliceSampler


def test_the_cache_holds_what_inference_would_see(cases: list[CachedCase]) -> None:
    assert [case.name for case in cases] == ["one", "two"]
    for case in cases:
        assert case.images.dtype == case.labels.dtype == np.uint8
        assert case.images.shape == case.labels.shape
        assert len(case.images) == 16
        assert case.spacing_z_mm == 16.0
        assert isinstance(case.images, np.memmap)
        assert {0, 1, 2, 3, 4} <= set(np.unique(case.labels))
    assert (cases[1].labels[:3] == IGNORE).all()
    liver = cases[0].images[cases[0].labels == 1].mean()
    assert liver == pytest.approx((110 + 125) / 400 * 255, abs=30)  # about 110 HU in -125..275


def test_the_cache_is_written_once_and_anew_when_the_data_changes(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    load_cases([data], tmp_path / "cache", TINY.model)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    load_cases([data], tmp_path / "cache", TINY.model)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == entries
    load_cases([data], tmp_path / "cache", tiny(window_hu=(-200.0, 300.0)).model)
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(entries)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("no images", r"no imagesTr/\*_0000.nii.gz; expected the FLARE / nnU-Net layout"),
        ("no label", r"labelsTr/one.nii.gz: no label for case one; add it or remove the image"),
        ("shape", r"labelsTr/one.nii.gz: shape .* the reference has .*; resample it onto that grid"),
        ("affine", r"labelsTr/one.nii.gz: its affine is not the reference's; resample it onto that grid"),
        ("value", r"labelsTr/one.nii.gz: holds the value 9; labels are 0, 1, 2, 3, 4, 255"),
    ],
)
def test_bad_data_is_named_before_training(tmp_path: pathlib.Path, change: str, line: str) -> None:
    image, label = tmp_path / "imagesTr" / "one_0000.nii.gz", tmp_path / "labelsTr" / "one.nii.gz"
    write_phantom(image, label, (64, 64, 4), (6.0, 6.0, 60.0))
    reference = nib.load(label)
    labels = np.asarray(reference.dataobj).copy()
    if change == "no images":
        image.unlink()
    elif change == "no label":
        label.unlink()
    elif change == "shape":
        nib.save(nib.Nifti1Image(labels[:-1], reference.affine), label)
    elif change == "affine":
        nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 1, 1])), label)
    else:
        labels[0, 0, 0] = 9
        nib.save(nib.Nifti1Image(labels, reference.affine), label)
    with pytest.raises(DataError, match=line):
        load_cases([tmp_path], tmp_path / "cache", TINY.model)


def test_batches_draw_organs_more_often_than_chance(cases: list[CachedCase]) -> None:
    sampler = SliceSampler(cases, [1.0, 0.0], TINY, seed=0)
    drawn = [sampler.draw() for _ in range(400)]
    assert {index for index, _ in drawn} == {0}
    pancreas = (cases[0].labels == 4).any((1, 2))
    assert np.mean([pancreas[z] for _, z in drawn]) > pancreas.mean() + 0.1
    images, labels, sizes = sampler.batch()
    assert images.shape == (2, 3, *sampler.canvas)
    assert labels.shape == (2, *sampler.canvas)
    assert sizes.tolist() == [list(cases[0].images.shape[1:])] * 2
    again, _, _ = SliceSampler(cases, [1.0, 0.0], TINY, seed=1).batch()
    same, _, _ = SliceSampler(cases, [1.0, 0.0], TINY, seed=1).batch()
    assert torch.equal(again, same)


def test_separate_slices_are_their_own_neighbours(cases: list[CachedCase]) -> None:
    separate = replace(cases[0], spacing_z_mm=None)
    assert separate.neighbour_step(16.0) == 0
    assert cases[0].neighbour_step(16.0) == 1
    images, _, _ = SliceSampler([separate], [1.0], tiny(batch=8, neighbour_mm=16.0), seed=0).batch()
    assert (images == images[:, :1]).all()
    images, _, _ = SliceSampler([cases[0]], [1.0], tiny(batch=8, neighbour_mm=16.0), seed=0).batch()
    assert not (images == images[:, :1]).all()
