"""A folder of scans in FLARE / nnU-Net layout -> a cache of slices on the network's grid, as memory-mapped uint8."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from app.checkpoint import ModelConfig
from app.engines.torch_images import windowed_slice
from app.errors import VolumeError
from app.inference.grid import network_grid
from app.inference.intensities import Intensities
from app.inference.plan import neighbour_step
from app.inference.slabs import slabs
from app.organs import IGNORE, Organ, bounding_box
from app.volumes import Volume, open_volume
from app.whole_file import clear_stale, whole_file
from evaluation.labels import LabelError, check_same_grid, read_labels
from evaluation.names import Labelled, NamesError, labelled_scans
from evaluation.processes import ProcessError, in_processes

log = logging.getLogger(__name__)

CACHE_VERSION = 4  # raise when what is stored changes
ABOUT = "case.json"
BODY_SHARE, BODY_MARGIN = 0.02, 8  # of the slices that must hold something; pixels


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


def find_pairs(folder: pathlib.Path) -> list[Labelled]:
    """Every (case, image, label) of a folder in the FLARE / nnU-Net layout.

    Raises:
        DataError: there are no images, one has no label, or the folder cannot be read.
    """
    try:
        return labelled_scans(folder)
    except (NamesError, OSError) as error:
        raise DataError(str(error)) from error


def load_cases(
    folders: Sequence[pathlib.Path], cache_dir: pathlib.Path, model: ModelConfig, separate_slices: Sequence[str] = ()
) -> list[CachedCase]:
    """Cache every case of the folders that is not cached yet, in parallel, and open them all, in order of name.

    Args:
        folders: in the FLARE / nnU-Net layout.
        cache_dir: the cache.
        model: says which grid and which HU window.
        separate_slices: first letters of the names of cases whose slices are not neighbours of each other.

    Raises:
        DataError: a file cannot be used, or the cache cannot be written.
    """
    pairs = [pair for folder in folders for pair in find_pairs(folder)]
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"case {twice[0]} is in more than one data folder; rename one")
    separate = {pair: pair[0].startswith(tuple(separate_slices)) for pair in pairs}
    entries = {_entry(pair, cache_dir, model, separate[pair]): pair for pair in pairs}
    missing = [(pair, entry, separate[pair]) for entry, pair in entries.items() if _opened(entry) is None]
    try:
        in_processes(partial(_store, model=model), missing, "caching")
    except ProcessError as error:
        raise DataError(str(error)) from error
    cases = [_opened(entry) for entry in entries]
    return sorted((case for case in cases if case), key=lambda case: case.name)


def _entry(pair: Labelled, cache_dir: pathlib.Path, model: ModelConfig, is_separate: bool) -> pathlib.Path:
    """The folder that holds a case; its name is a hash of all that its content depends on."""
    name, *files = pair
    digest = hashlib.sha256(repr((CACHE_VERSION, model.spacing_mm, model.window_hu, is_separate)).encode())
    for path in files:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return cache_dir / f"{name}-{digest.hexdigest()[:16]}"


def _store(item: tuple[Labelled, pathlib.Path, bool], model: ModelConfig) -> None:
    """Prepare a case and write its entry, file by file, each whole or not at all; the one written last makes it valid.

    So whatever a killed process leaves behind is written over, and two at once write the same.
    """
    (name, image, label), entry, is_separate = item
    torch.set_num_threads(1)  # the cases run in parallel
    images, labels, spacing_z_mm = prepare(image, label, model, is_separate)
    try:
        entry.mkdir(parents=True, exist_ok=True)
        clear_stale(entry)
        for kind, array in (("images", images), ("labels", labels)):
            with whole_file(entry / f"{kind}.npy") as stream:
                np.save(stream, array)
        with whole_file(entry / ABOUT) as stream:
            stream.write(json.dumps({"name": name, "spacing_z_mm": spacing_z_mm}).encode())
    except OSError as error:
        raise DataError(
            f"{entry}: cannot be written ({error.strerror or error}); free disk space, or choose another --cache"
        ) from error


def _opened(entry: pathlib.Path) -> CachedCase | None:
    """A case in the cache; None where it is not there, or not as a whole."""
    try:
        about = json.loads((entry / ABOUT).read_text())
        images, labels = (np.load(entry / f"{kind}.npy", mmap_mode="c") for kind in ("images", "labels"))
        case = CachedCase(about["name"], images, labels, about["spacing_z_mm"])
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return case if images.ndim == 3 and images.shape == labels.shape else None


def prepare(
    image: pathlib.Path, label: pathlib.Path, model: ModelConfig, is_separate: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], float | None]:
    """Read a case and bring it to the network's grid, as inference does, then crop it to the body.

    Returns:
        Images and labels (Z, H, W) uint8 and the distance of slices in mm, None for separate slices.

    Raises:
        DataError: image or label cannot be read, or they do not belong together.
    """
    try:
        scan = open_volume(image)
        reference = labels_of(label, scan)
        spacing_z_mm = None if is_separate else scan.geometry.spacing_zyx_mm[0]
        images, labels = _on_grid(scan, reference, model, is_separate)
    except VolumeError as error:
        raise DataError(str(error)) from error
    box = _body(images)
    return images[:, *box].copy(), labels[:, *box].copy(), spacing_z_mm


def _on_grid(
    scan: Volume, reference: NDArray[np.uint8], model: ModelConfig, is_separate: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Every slice of a scan and its labels (Z, H, W), resampled to the network's grid."""
    depth, height, width = scan.geometry.shape_zyx
    grid = network_grid((height, width), scan.geometry.spacing_zyx_mm[1:], model.spacing_mm)
    images, labels = np.empty((depth, *grid), np.uint8), np.empty((depth, *grid), np.uint8)
    classes = torch.tensor([*Organ, IGNORE], dtype=torch.uint8)
    intensities = Intensities()
    for z, hounsfield in scan.slices() if is_separate else _slabs(scan):
        intensities.add(hounsfield)
        windowed = windowed_slice(torch.from_numpy(hounsfield), model.window_hu, grid)
        images[z] = windowed.round_().clamp_(0, 255).byte().numpy()
        shares = (torch.from_numpy(reference[z])[None] == classes[:, None, None]).float()[None]
        # A grid pixel takes the label that covers most of it.
        labels[z] = classes[functional.interpolate(shares, grid, mode="bilinear", antialias=True)[0].argmax(0)].numpy()
    for doubt in (*scan.warnings, intensities.doubts()):
        if doubt:
            log.warning("warning: %s: %s", scan.path, doubt)
    return images, labels


def _slabs(scan: Volume) -> Iterator[tuple[int, NDArray[np.int16]]]:
    geometry = scan.geometry
    for z, slab in slabs(scan.slices(), geometry.spacing_zyx_mm, geometry.shape_zyx[0]):
        yield z, slab()


def _body(images: NDArray[np.uint8]) -> tuple[slice, ...]:
    """Rows and columns of the body's shadow along z, with a margin; all where there is no body."""
    box = bounding_box((images > 0).mean(axis=0) > BODY_SHARE)
    if box is None:
        return slice(None), slice(None)
    return tuple(slice(max(0, part.start - BODY_MARGIN), part.stop + BODY_MARGIN) for part in box)


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
