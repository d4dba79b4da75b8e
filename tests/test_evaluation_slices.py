"""Separate slices: each is segmented by itself, and scores are pooled per patient."""

from __future__ import annotations

import pathlib

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from app.organs import IGNORE, Organ
from app.volumes import open_volume
from evaluation.__main__ import main
from evaluation.slices import markdown, mean_dice, pooled_dice


@pytest.fixture
def stack(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with one patient, stored RAS: in slice z, columns 0..z of 6 are liver, and the HU say z."""
    labels = np.zeros((6, 5, 3), np.uint8)
    hounsfield = np.zeros(labels.shape, np.int16)
    for z in range(3):
        labels[: z + 1, :, z], hounsfield[:, :, z] = Organ.LIVER, 100 * z
    labels[5, 0, 2] = IGNORE
    for folder, name, array in (("imagesTr", "a_0000", hounsfield), ("labelsTr", "a", labels)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array, np.diag([20.0, 20, 30, 1])), tmp_path / folder / f"{name}.nii.gz")
    return tmp_path


def test_each_slice_is_a_scan_of_its_own_and_scores_are_pooled(stack: pathlib.Path) -> None:
    shown = []

    def segment(path: pathlib.Path) -> NDArray[np.uint8]:
        """Everything is liver."""
        volume = open_volume(path)
        ((_, plane),) = volume.slices()
        shown.append((np.unique(plane).tolist(), volume.geometry.spacing_zyx_mm))
        return np.full(volume.geometry.shape, Organ.LIVER, np.uint8)

    scores = pooled_dice(("a", stack / "imagesTr" / "a_0000.nii.gz", stack / "labelsTr" / "a.nii.gz"), segment)
    assert shown == [([z * 100], (30, 20, 20)) for z in range(3)]
    reference, prediction = 5 * (1 + 2 + 3), 3 * 30 - 1
    assert scores == {Organ.LIVER: pytest.approx(2 * reference / (reference + prediction))}


def test_a_mask_lies_as_its_slice_does(stack: pathlib.Path) -> None:
    """The reference, slice by slice in LPS order, taken for the mask."""
    labels = np.asarray(nib.load(stack / "labelsTr" / "a.nii.gz").dataobj)

    def segment(path: pathlib.Path) -> NDArray[np.uint8]:
        volume = open_volume(path)
        ((_, plane),) = volume.slices()
        return labels[::-1, ::-1, int(plane[0, 0]) // 100][..., None]  # RAS -> LPS

    scores = pooled_dice(("a", stack / "imagesTr" / "a_0000.nii.gz", stack / "labelsTr" / "a.nii.gz"), segment)
    assert scores == {Organ.LIVER: 1.0}


def test_the_mean_is_over_the_patients_who_have_the_organ() -> None:
    scores = {"a": {Organ.LIVER: 0.9, Organ.SPLEEN: 0.5}, "b": {Organ.LIVER: 0.7}}
    assert mean_dice(scores) == {Organ.LIVER: pytest.approx(0.8), Organ.SPLEEN: 0.5}
    assert markdown(scores).splitlines()[2:] == [
        "| mean (patients) | 80.0 (2) |  | 50.0 (1) |  |",
        "| a | 90.0 |  | 50.0 |  |",
        "| b | 70.0 |  |  |  |",
    ]


def test_the_command(stack: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["slices", str(stack), "--model", str(tiny_weights), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "table.md").read_text() in result.output
    assert (out / "scores.csv").read_text().splitlines()[0] == "Name,DSC_1,DSC_2,DSC_3,DSC_4"
    result = CliRunner().invoke(main, ["slices", str(out), "--model", str(tiny_weights), "--out", str(out)])
    assert result.exit_code == 1
    assert result.output == f"error: {out}: no imagesTr/*_0000.nii.gz; expected the FLARE / nnU-Net layout\n"
