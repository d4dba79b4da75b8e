"""A model, loaded once, and what it makes of one scan: the Python call behind everything else.

All defaults are here: which model, which device, whether small components are removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checkpoint import bundled_models, find_model, load_checkpoint
from .inference.components import keep_largest
from .inference.grid import network_grid
from .inference.labelling import Findings, OnSlice, label_slices
from .inference.predictor import Model, NetworkPredictor, choose_device, load_onto
from .volumes import Slices, Volume, open_volume

log = logging.getLogger(__package__)

MODEL_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Segmentation:
    """What a scan's segmentation gave.

    Attributes:
        volume: the scan.
        mask: labels 0..4, uint8, in the scan's stored axis order and shape, Fortran-contiguous.
        findings: what the loop over the slices saw.
        batch_size: slices that went through the network at a time, at most.
        seconds: by stage.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    findings: Findings
    batch_size: int
    seconds: dict[str, float]


def default_model(device: str) -> str:
    """`paper` where it is bundled and a GPU will run it, else `fast`."""
    return "paper" if "paper" in bundled_models() and choose_device(device).type == "cuda" else "fast"


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
            name: `fast`, `paper`, or a path; None: see `default_model`.
            device: `auto`, `cuda` or `cpu`.
            batch_size: slices a batch; None chooses from the free memory.
            postprocess: keep only the largest components of each organ.

        Raises:
            CheckpointError: the weights are missing, altered or foreign.
            DeviceError: the device is not there, or has no room for the weights.
        """
        chosen = choose_device(device)
        if device == "auto" and chosen.type == "cpu":
            log.warning("no usable NVIDIA GPU (start a container with --gpus all to use one): running on the CPU")
        name = name or default_model(device)
        is_file = isinstance(name, pathlib.Path) or name.endswith(MODEL_SUFFIX)
        checkpoint = load_checkpoint([pathlib.Path(name)] if is_file else find_model(str(name)))
        return cls(load_onto(checkpoint, chosen), checkpoint.sha256, batch_size, postprocess)

    def segment(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """Segment one scan.

        Args:
            path: a .nii or .nii.gz file.

        Returns:
            Labels 0..4 (see `Organ`), uint8, in the file's own axis order and shape.

        Raises:
            VolumeError: the file is not a readable CT.
            InferenceError: there is not enough memory.
        """
        volume = open_volume(pathlib.Path(path))
        return self.segment_volume(volume, volume.slices()).mask

    def segment_volume(self, volume: Volume, slices: Slices, on_slice: OnSlice = lambda count: None) -> Segmentation:
        """Segment an opened scan, given its slices, which are closed at the end; all that is worth logging."""
        geometry = volume.geometry
        grid = network_grid(geometry.shape_zyx[1:], geometry.spacing_zyx_mm[1:], self.model.config.spacing_mm)
        predictor = NetworkPredictor(self.model, grid, self.batch_size)
        with contextlib.closing(slices):
            mask = np.zeros(geometry.shape, np.uint8, order="F")
            findings = label_slices(predictor, slices, geometry.spacing_zyx_mm, geometry.orient(mask), on_slice)
        begin = time.perf_counter()
        if self.postprocess:
            keep_largest(mask)
        seconds = {
            "read": findings.read_seconds,
            "network": findings.network_seconds,
            "postprocess": time.perf_counter() - begin,
        }
        return Segmentation(volume, mask, findings, predictor.batch_size, seconds)
