"""Fixtures that several test modules use."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings

from app.checkpoint import save_checkpoint
from app.network import build, tensors_of
from app.organs import IGNORE
from phantom import write_phantom
from tests.tiny import CONFIG, TINY, randomise
from training.cache import CachedCase, load_cases

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any machine")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model of width 2 with random weights: fast, and wrong."""
    config = replace(CONFIG, spacing_mm=6.0)  # a coarse grid saves time
    network = randomise(build(config), seed=9)
    with torch.no_grad():  # no class may win everywhere
        logits = network(torch.rand(1, 3, 128, 128)).refined
        network.ocr_head.classify.bias -= logits.mean((0, 2, 3))
        scale = 1 / logits.std((0, 2, 3))
        network.ocr_head.classify.weight *= scale[:, None, None, None]
        network.ocr_head.classify.bias *= scale
    return save_checkpoint(config, tensors_of(network.state_dict()), tmp_path_factory.mktemp("weights"))


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
