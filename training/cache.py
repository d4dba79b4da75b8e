"""A folder of scans in FLARE / nnU-Net layout -> a cache of slices on the network's grid, as memory-mapped uint8."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from app.checkpoint import ModelConfig
from app.inference.grid import network_grid
from app.inference.plan import neighbour_step
from app.inference.preprocess import windowed_slice
from app.organs import IGNORE, Organ
from app.volumes import Volume, open_volume
from evaluation.labels import LabelError, check_same_grid, read_labels

CACHE_VERSION = 2  # raise when what is stored changes


class DataError(Exception):
    """The training data cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class CachedCase:
    """One case: images and labels (Z, H, W) uint8, memory-mapped, cropped in plane to the body.

    Attributes:
        name: of the case.
        images: slices on the network's grid.
        labels: their labels, 255 where not annotated.
        spacing_z_mm: distance of the slices; None for separate slices, which are not neighbours of each other.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    spacing_z_mm: float | None

    def neighbour_step(self, neighbour_mm: float | None) -> int:
        """Slices between the slices of two neighbouring channels; 0: all channels hold the same slice."""
        return 0 if self.spacing_z_mm is None else neighbour_step(self.spacing_z_mm, neighbour_mm)


Pair = tuple[str, pathlib.Path, pathlib.Path]  # case, image, label


def find_pairs(folder: pathlib.Path) -> list[Pair]:
    """Every (case, image, label) of a folder with imagesTr/X_0000.nii.gz and labelsTr/X.nii.gz."""
    images = sorted((folder / "imagesTr").glob("*_0000.nii.gz"))
    if not images:
        raise DataError(f"{folder}: no imagesTr/*_0000.nii.gz; expected the FLARE / nnU-Net layout")
    cases = [(p.name.removesuffix("_0000.nii.gz"), p) for p in images]
    pairs = [(name, image, folder / "labelsTr" / f"{name}.nii.gz") for name, image in cases]
    for name, _, label in pairs:
        if not label.exists():
            raise DataError(f"{label}: no label for case {name}; add it or remove the image")
    return pairs


def load_cases(folders: Sequence[pathlib.Path], cache_dir: pathlib.Path, model: ModelConfig) -> list[CachedCase]:
    """Cache every case of the folders that is not cached yet, in parallel, and open them all, in order of name."""
    pairs = [pair for folder in folders for pair in find_pairs(folder)]
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"case {twice[0]} is in more than one data folder; rename one")
    cache_dir.mkdir(parents=True, exist_ok=True)
    entries = [_entry(pair, cache_dir, model) for pair in pairs]
    missing = [(pair, entry) for pair, entry in zip(pairs, entries, strict=True) if not entry.exists()]
    if missing:
        with ProcessPoolExecutor(min(len(missing), os.cpu_count() or 1), get_context("spawn")) as pool:
            stored = pool.map(partial(_store, model=model), missing)
            list(tqdm(stored, "caching", len(missing), disable=None))
    return sorted((_open(entry) for entry in entries), key=lambda case: case.name)


def _entry(pair: Pair, cache_dir: pathlib.Path, model: ModelConfig) -> pathlib.Path:
    """The folder that holds a case; its name is a hash of all that its content depends on."""
    name, *files = pair
    digest = hashlib.sha256(repr((CACHE_VERSION, model.spacing_mm, model.window_hu)).encode())
    for path in files:
        digest.update(path.read_bytes())
    return cache_dir / f"{name}-{digest.hexdigest()[:16]}"


def _store(item: tuple[Pair, pathlib.Path], model: ModelConfig) -> None:
    """Prepare a case and write its entry under a temporary name, then rename it."""
    (name, image, label), entry = item
    torch.set_num_threads(1)  # the cases run in parallel
    images, labels, spacing_z_mm = prepare(image, label, model)
    partial_entry = entry.parent / f".{entry.name}.{os.getpid()}"
    partial_entry.mkdir()
    np.save(partial_entry / "images.npy", images)
    np.save(partial_entry / "labels.npy", labels)
    (partial_entry / "case.json").write_text(json.dumps({"name": name, "spacing_z_mm": spacing_z_mm}))
    try:
        partial_entry.rename(entry)
    except OSError:  # another process was first
        shutil.rmtree(partial_entry)


def _open(entry: pathlib.Path) -> CachedCase:
    about = json.loads((entry / "case.json").read_text())
    images, labels = (np.load(entry / f"{kind}.npy", mmap_mode="c") for kind in ("images", "labels"))
    return CachedCase(about["name"], images, labels, about["spacing_z_mm"])


def prepare(
    image: pathlib.Path, label: pathlib.Path, model: ModelConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], float]:
    """Read a case and bring it to the network's grid, as inference does, then crop it to the body.

    Returns:
        Images and labels (Z, H, W) uint8 and the distance of slices in mm.
    """
    scan = open_volume(image)
    depth, height, width = scan.geometry.shape_zyx
    spacing_z, *spacing_yx = scan.geometry.spacing_zyx_mm
    reference = labels_of(label, scan)
    grid = network_grid((height, width), spacing_yx, model.spacing_mm)
    images = np.empty((depth, *grid), np.uint8)
    labels = np.empty((depth, *grid), np.uint8)
    classes = torch.tensor([*Organ, IGNORE], dtype=torch.uint8)
    for z, hounsfield in scan.slices():
        windowed = windowed_slice(torch.from_numpy(hounsfield), model.window_hu, grid)
        images[z] = windowed.round_().clamp_(0, 255).byte().numpy()
        shares = (torch.from_numpy(reference[z])[None] == classes[:, None, None]).float()[None]
        # A grid pixel takes the label that covers most of it.
        labels[z] = classes[functional.interpolate(shares, grid, mode="bilinear", antialias=True)[0].argmax(0)].numpy()
    body = (images > 0).mean(axis=0) > 0.02
    box = tuple(slice(max(0, np.flatnonzero(line)[0] - 8), np.flatnonzero(line)[-1] + 9) for line in _lines(body))
    return images[:, box[0], box[1]].copy(), labels[:, box[0], box[1]].copy(), spacing_z


def labels_of(path: pathlib.Path, scan: Volume) -> NDArray[np.uint8]:
    """The label volume of a scan, (Z, Y, X) uint8 with values 0..4 and 255.

    Raises:
        DataError: it cannot be read, its grid is not the scan's, or it holds another value.
    """
    try:
        labels, geometry = read_labels(path, [*Organ, IGNORE])
        check_same_grid(path, geometry, scan.geometry)
    except LabelError as error:
        raise DataError(str(error)) from error
    return labels


def _lines(body: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows and columns of the body's shadow are taken; all where there is no body."""
    if not body.any():
        return np.ones(body.shape[0], bool), np.ones(body.shape[1], bool)
    return np.asarray(body.any(axis=1)), np.asarray(body.any(axis=0))
