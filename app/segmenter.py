"""A model, loaded once, and what it makes of one scan: the Python call behind everything else.

All defaults are here: which model, which device, whether small components are removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checkpoint import find_model, load_checkpoint
from .inference.components import keep_largest
from .inference.grid import network_grid
from .inference.labelling import Findings, OnSlice, Witness, label_slices
from .inference.predictor import Model, NetworkPredictor, choose_device, load_onto, memory_errors
from .organs import Organ, organ_voxels
from .volumes import Slices, Volume, open_volume

log = logging.getLogger(__package__)

# By device. `paper` is the more accurate over the scans kept apart. A GPU takes no longer for it; a CPU, five times as
# long.
DEFAULT_MODEL = {"cuda": "paper", "cpu": "fast"}
MODEL_SUFFIX = ".safetensors"

# Below these the network's own confidence says that an organ should be looked at, by model. Chosen where
# `make confidence` showed that scans below are worse; livers and spleens that a flag could find were not among them.
UNSURE = {Organ.KIDNEYS: 0.95, Organ.PANCREAS: 0.89}
CHECK_BELOW = {"fast": UNSURE, "paper": UNSURE}


@dataclass(frozen=True)
class Segmentation:
    """What a scan's segmentation gave.

    Attributes:
        volume: the scan.
        mask: labels 0..4, uint8, in the scan's stored axis order and shape, Fortran-contiguous.
        findings: what the loop over the slices saw.
        batch_size: slices that went through the network at a time, at most.
        seconds: by stage.
        volumes_ml: of every organ, 0 where it is missing.
        confidence: of the network in every organ, see `Confidence`; None for an organ that it did not see.
        check: organs whose confidence is so low that they should be looked at.
        components_removed: of every organ; none without postprocessing.
        warnings: what a user should know about the scan or the mask, a sentence each.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    findings: Findings
    batch_size: int
    seconds: dict[str, float]
    volumes_ml: dict[Organ, float]
    confidence: dict[Organ, float | None]
    check: tuple[Organ, ...]
    components_removed: dict[Organ, int]
    warnings: tuple[str, ...]


class Segmenter:
    """A model, loaded once and ready for any number of scans."""

    def __init__(
        self, model: Model, sha256: dict[str, str], batch_size: int | None = None, postprocess: bool = True
    ) -> None:
        self.model = model
        self.sha256 = sha256
        self.batch_size = batch_size
        self.postprocess = postprocess

    @classmethod
    def load(
        cls,
        name: str | pathlib.Path | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        postprocess: bool = True,
    ) -> Segmenter:
        """Load a bundled model by name, or a weights file by path (a Path, or a string ending with .safetensors).

        Args:
            name: `fast`, `paper`, or a path; None: `DEFAULT_MODEL` of the device.
            device: `auto`, `cuda` or `cpu`.
            batch_size: slices per batch; None chooses from the free memory.
            postprocess: keep only the largest components of each organ.

        Raises:
            CheckpointError: the weights are missing, altered or foreign.
            DeviceError: the device is not there, or has no room for the weights.
        """
        chosen = choose_device(device)
        if device == "auto" and chosen.type == "cpu":
            log.warning("no usable NVIDIA GPU (start a container with --gpus all to use one): running on the CPU")
        name = name or DEFAULT_MODEL[chosen.type]
        is_file = isinstance(name, pathlib.Path) or name.endswith(MODEL_SUFFIX)
        checkpoint = load_checkpoint([pathlib.Path(name)] if is_file else find_model(str(name)))
        return cls(load_onto(checkpoint, chosen), checkpoint.sha256, batch_size, postprocess)

    def segment(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """Segment one scan. What is odd about it or its mask is logged as a warning.

        Args:
            path: a .nii or .nii.gz file.

        Returns:
            Labels 0..4 (see `Organ`), uint8, in the file's own axis order and shape.

        Raises:
            VolumeError: the file is not a readable CT.
            InferenceError: there is not enough memory.
        """
        volume = open_volume(pathlib.Path(path))
        segmentation = self.segment_volume(volume, volume.slices())
        for warning in segmentation.warnings:
            log.warning("%s: %s", volume.path.name, warning)
        return segmentation.mask

    def segment_volume(
        self,
        volume: Volume,
        slices: Slices,
        on_slice: OnSlice = lambda count: None,
        witness: Witness | None = None,
    ) -> Segmentation:
        """Segment an opened scan, given its slices, which are closed at the end; all that is worth logging.

        Args:
            volume: the scan.
            slices: of it.
            on_slice: called with the number of slices done since the last call.
            witness: is shown every slice and its labels, before small components are removed.
        """
        geometry = volume.geometry
        grid = network_grid(geometry.shape_zyx[1:], geometry.spacing_zyx_mm[1:], self.model.config.spacing_mm)
        predictor = NetworkPredictor(self.model, grid, self.batch_size)
        with contextlib.closing(slices), memory_errors(self.model.device, grid):
            mask = np.zeros(geometry.shape, np.uint8, order="F")
            findings = label_slices(
                predictor, slices, geometry.spacing_zyx_mm, geometry.orient(mask), on_slice, witness=witness
            )
        begin = time.perf_counter()
        removed = keep_largest(mask) if self.postprocess else {}
        seconds = {
            "read": findings.read_seconds,
            "network": findings.network_seconds,
            "postprocess": time.perf_counter() - begin,
        }
        voxel_ml = float(np.prod(geometry.spacing_zyx_mm)) / 1000
        volumes_ml = {organ: count * voxel_ml for organ, count in organ_voxels(mask).items()}
        confidence = findings.confidence.of_organs()
        least = CHECK_BELOW.get(self.model.config.name, {})
        check = tuple(organ for organ, value in confidence.items() if value is not None and value < least.get(organ, 0))
        warnings = (*volume.warnings, *_doubts(findings, volumes_ml), *_low_confidence(check, confidence))
        return Segmentation(
            volume,
            mask,
            findings,
            predictor.batch_size,
            seconds,
            volumes_ml,
            confidence,
            check,
            removed,
            warnings,
        )


def _low_confidence(check: Iterable[Organ], confidence: Mapping[Organ, float | None]) -> Iterator[str]:
    for organ in check:
        yield f"check the {organ.key}: the network is unsure of it (confidence {confidence[organ]:.2f})"


def _doubts(findings: Findings, volumes_ml: Mapping[Organ, float]) -> Iterator[str]:
    """What a user should know about a mask that is given all the same."""
    if doubt := findings.intensities.doubts():
        yield doubt
    missing = [organ.key for organ, ml in volumes_ml.items() if ml == 0]
    if missing:
        yield f"no {', no '.join(missing)} found; check that this is an abdominal CT"
    for organ, ml in volumes_ml.items():
        if ml > organ.largest_ml:
            yield (
                f"{organ.key} of {ml:.0f} ml, larger than any known ({organ.largest_ml} ml); "
                "check the scan's spacing and intensities"
            )
