"""Scans made harder: what each variant does to a volume, by hand, and the command that scores models on them."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from app.organs import IGNORE, ORGANS, Organ
from evaluation.__main__ import main
from evaluation.hard import VARIANTS, LabelledVolume, averaged, half_contrast, make_variants, noisy
from evaluation.names import labelled_scans
from phantom import make_phantom

SPACING_XYZ = (0.8, 0.75, 2.5)


@pytest.fixture(scope="module")
def volume() -> LabelledVolume:
    """A phantom in LPS order, off the middle of the patient's frame."""
    hounsfield, labels = make_phantom((128, 120, 24), (3.0, 3.0, 11.0), seed=0)
    affine = np.diag([-SPACING_XYZ[0], -SPACING_XYZ[1], SPACING_XYZ[2], 1.0])
    affine[:3, 3] = 17, -30, 400
    return LabelledVolume("one", hounsfield.transpose(2, 1, 0), labels.transpose(2, 1, 0).astype(np.uint8), affine)


def centre(volume: LabelledVolume, organ: Organ) -> np.ndarray:
    """The middle of an organ, mm."""
    voxels = np.argwhere(volume.labels == organ)[:, ::-1].mean(axis=0)
    middle: np.ndarray = volume.affine[:3, :3] @ voxels + volume.affine[:3, 3]
    return middle


@pytest.mark.parametrize(
    ("variant", "axis", "mm"), [("3mm-pixels", 0, 3.0), ("3mm-pixels", 1, 3.0), ("10mm-slices", 2, 10.0)]
)
def test_larger_voxels_keep_place_brightness_and_volume(
    volume: LabelledVolume, variant: str, axis: int, mm: float
) -> None:
    changed = VARIANTS[variant](volume)
    spacing = np.linalg.norm(changed.affine[:3, :3], axis=0)
    assert spacing[axis] == pytest.approx(mm)
    assert changed.hounsfield.shape == changed.labels.shape
    assert changed.hounsfield.dtype == np.int16
    kept = [i for i in range(3) if i != axis and variant == "10mm-slices"]
    assert spacing[kept].tolist() == pytest.approx([SPACING_XYZ[i] for i in kept])
    assert changed.hounsfield.mean() == pytest.approx(volume.hounsfield.mean(), abs=20)
    assert np.abs(centre(changed, Organ.LIVER) - centre(volume, Organ.LIVER)).max() < 0.2 * mm
    litres = [(v.labels == Organ.LIVER).sum() * abs(np.linalg.det(v.affine[:3, :3])) for v in (changed, volume)]
    assert litres[0] == pytest.approx(litres[1], rel=0.03 if variant == "3mm-pixels" else 0.15)


def test_means_and_majorities_by_hand() -> None:
    line, labels = np.array([[[0, 30, 60]]], np.int16), np.array([[[1, IGNORE, IGNORE]]], np.uint8)
    changed = averaged(LabelledVolume("x", line, labels, np.diag([2.0, 1, 1, 1])), (3, 0, 0))
    assert changed.hounsfield.tolist() == [[[10, 50]]]  # (0 + 30 / 2) / 1.5 and (30 / 2 + 60) / 1.5
    assert changed.labels.tolist() == [[[1, IGNORE]]]
    assert changed.affine[0].tolist() == [3, 0, 0, 0.5]
    half = averaged(LabelledVolume("x", line[..., :2], np.array([[[0, 1]]], np.uint8), np.eye(4)), (2, 0, 0))
    assert half.labels.tolist() == [[[1]]]


def test_no_voxel_gets_smaller_and_a_thin_volume_keeps_a_slice() -> None:
    cube = LabelledVolume("x", np.ones((2, 3, 3), np.int16), np.ones((2, 3, 3), np.uint8), np.diag([4.0, 4, 4, 1]))
    assert VARIANTS["3mm-pixels"](cube).hounsfield.shape == (2, 3, 3)
    assert VARIANTS["10mm-slices"](cube).hounsfield.shape == (1, 3, 3)


def test_noise_has_its_strength_and_its_grain_and_is_the_same_every_time(volume: LabelledVolume) -> None:
    flat = replace(volume, hounsfield=np.full((4, 128, 128), 50, np.int16))
    noise = noisy(flat).hounsfield - 50.0
    assert noise.std() == pytest.approx(40, abs=0.5)
    for axis in (1, 2):
        assert (noise * np.roll(noise, 2, axis)).mean() / noise.var() == pytest.approx(np.exp(-1), abs=0.04)
    assert abs((noise[0] * noise[1]).mean()) / noise.var() < 0.05
    assert np.array_equal(noisy(flat).hounsfield, noisy(flat).hounsfield)
    assert not np.array_equal(noisy(replace(flat, name="two")).hounsfield, noisy(flat).hounsfield)


def test_slices_apart_are_left_as_they_are(volume: LabelledVolume) -> None:
    changed = VARIANTS["15mm-apart"](volume)
    assert np.linalg.norm(changed.affine[:3, 2]) == pytest.approx(15)
    assert np.array_equal(changed.hounsfield, volume.hounsfield[::6])
    assert np.array_equal(changed.labels, volume.labels[::6])


def test_thin_slices_lie_between_the_scans_own_with_noise_of_each_ones_own(volume: LabelledVolume) -> None:
    changed = VARIANTS["1mm-slices"](volume)
    assert np.linalg.norm(changed.affine[:3, 2]) == pytest.approx(1)
    assert len(changed.hounsfield) == 1 + int(23 * 2.5)
    noise = changed.hounsfield[1] - (0.6 * volume.hounsfield[0] + 0.4 * volume.hounsfield[1])
    other = changed.hounsfield[5] - volume.hounsfield[2].astype(float)
    assert noise.std() == pytest.approx(25, abs=0.5)
    assert other.std() == pytest.approx(25, abs=0.5)
    assert abs((noise * other).mean()) < 0.05 * 25**2
    assert np.abs(centre(changed, Organ.LIVER) - centre(volume, Organ.LIVER)).max() < 1
    one = replace(volume, hounsfield=volume.hounsfield[:1], labels=volume.labels[:1])
    assert VARIANTS["1mm-slices"](one).hounsfield.shape == (1, 120, 128)


def test_half_the_contrast_by_hand() -> None:
    hounsfield = np.array([[[-1000, -125, 0, 100, 200, 600]]], np.int16)
    changed = half_contrast(LabelledVolume("x", hounsfield, hounsfield.astype(np.uint8), np.eye(4)))
    assert changed.hounsfield.tolist() == [[[-1000, -125, 50, 100, 150, 350]]]  # about 100, the mean of 0, 100, 200


def test_the_command_scores_every_variant(
    data: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    out, variants = tmp_path / "out", tmp_path / "variants"
    options = ["--model", str(tiny_weights), "--variants", str(variants), "--out", str(out)]
    result = CliRunner().invoke(main, ["hard", str(data), *options])
    assert result.exit_code == 0, result.output
    assert (out / "hard.md").read_text() in result.output
    about = json.loads((out / "hard.json").read_text())
    (model,) = about["models"]
    assert len(about["models"][model]["sha256"][tiny_weights.name]) == 64
    assert list(about["scores"][model]) == list(VARIANTS)
    for cases in about["scores"][model].values():
        assert list(cases) == ["one", "two"]
        assert all(list(case) == [organ.key for organ in ORGANS] for case in cases.values())
    again = make_variants(labelled_scans(data), tmp_path / "again")
    for name, scans in again.items():
        for _, *files in scans:
            for path in files:
                assert path.read_bytes() == (variants / name / path.parent.name / path.name).read_bytes()


def test_a_damaged_scan_is_named(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    for folder, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"")
    options = ["--model", str(tiny_weights), "--variants", str(tmp_path / "variants"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["hard", str(tmp_path), *options])
    assert result.exit_code == 1
    assert f"error: {tmp_path}/imagesTr/a_0000.nii.gz: " in result.output
    result = CliRunner().invoke(main, ["hard", str(tmp_path / "out"), *options])
    assert result.exit_code == 2
