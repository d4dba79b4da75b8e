"""Fixtures that several test modules use."""

from __future__ import annotations

import pathlib

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

from app.organs import IGNORE
from phantom import write_phantom
from tests.tiny import COARSE, TINY, save_undecided
from training.cache import CachedCase, load_cases

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any machine")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model of width 2 with random weights: fast, and wrong."""
    return save_undecided(COARSE, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def phantom_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small phantom, with all four organs; its label lies beside it."""
    folder = tmp_path_factory.mktemp("phantom")
    path = folder / "phantom_0000.nii.gz"
    write_phantom(path, folder / "phantom.nii.gz", shape=(128, 128, 20), spacing_mm=(3.0, 3.0, 13.0))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two phantoms in the FLARE / nnU-Net layout; the second has unannotated voxels."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("one", "two")):
        label = folder / "labelsTr" / f"{name}.nii.gz"
        write_phantom(folder / "imagesTr" / f"{name}_0000.nii.gz", label, (96, 80, 16), (4.0, 4.0, 16.0), seed=seed)
    reference = nib.load(label)
    labels = np.asarray(reference.dataobj).copy()
    labels[:, :, :3] = IGNORE
    nib.save(nib.Nifti1Image(labels, reference.affine), label)
    return folder


@pytest.fixture(scope="session")
def cases(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    """The same two as training sees them."""
    return load_cases([data], tmp_path_factory.mktemp("cache"), TINY.model)
