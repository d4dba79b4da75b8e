"""A model, loaded once, and what it makes of one scan: the Python call behind everything else."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.checkpoint import find_model, load_checkpoint
from app.components import keep_largest
from app.model import Model, place
from app.scan import Scan, Slices, open_scan, orient
from app.segment import Findings, OnSlice, segment_slices

log = logging.getLogger("app")

MODEL_SUFFIX = ".safetensors"


class DeviceError(Exception):
    """The device that was asked for is not there; the message says what to do."""


@dataclass(frozen=True)
class Segmentation:
    """A mask (uint8, the file's axis order and shape), what the loop saw, and seconds by stage."""

    scan: Scan
    mask: NDArray[np.uint8]
    findings: Findings
    seconds: dict[str, float]


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cuda` or `cpu` -> a device that works.

    Raises:
        DeviceError: `cuda` was asked for and there is none.
    """
    usable = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise DeviceError(
            "--device cuda: no usable NVIDIA GPU; start the container with --gpus all, or use --device cpu"
        )
    if wanted == "auto" and not usable:
        log.warning("no usable NVIDIA GPU (start a container with --gpus all to use one): running on the CPU")
    return torch.device("cuda" if usable else "cpu")


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
        name: str | pathlib.Path = "fast",
        device: str = "auto",
        batch_size: int | None = None,
        postprocess: bool = True,
    ) -> Segmenter:
        """Load a bundled model by name, or any weights file of ours by path (a Path, or ending with .safetensors).

        Args:
            name: `fast`, `paper`, or a path.
            device: `auto`, `cuda` or `cpu`.
            batch_size: slices a batch; None chooses from the free memory.
            postprocess: keep only the largest components of each organ.

        Raises:
            CheckpointError: the weights are missing, altered or foreign.
            DeviceError: the device is not there.
        """
        is_file = isinstance(name, pathlib.Path) or name.endswith(MODEL_SUFFIX)
        checkpoint = load_checkpoint([pathlib.Path(name)] if is_file else find_model(str(name)))
        return cls(place(checkpoint, choose_device(device)), checkpoint.sha256, batch_size, postprocess)

    def segment(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """Segment one scan.

        Args:
            path: a .nii or .nii.gz file.

        Returns:
            Labels 0..4 (see `app.organs.Organ`), uint8, in the file's own axis order and shape.

        Raises:
            ScanError: the file is not a readable CT.
            SegmentError: there is not enough memory.
        """
        scan = open_scan(pathlib.Path(path))
        return self.segment_scan(scan, scan.slices()).mask

    def segment_scan(self, scan: Scan, slices: Slices, on_slice: OnSlice = lambda count: None) -> Segmentation:
        """The same for an opened scan and its slices, which are closed, with all that is worth logging."""
        with contextlib.closing(slices):
            mask = np.zeros(scan.shape, np.uint8, order="F")
            view = orient(mask, scan.turn)
            findings = segment_slices(self.model, slices, scan.spacing_zyx_mm, view, self.batch_size, on_slice)
        begin = time.perf_counter()
        if self.postprocess:
            keep_largest(mask)
        seconds = {
            "read": findings.read_seconds,
            "network": findings.network_seconds,
            "postprocess": time.perf_counter() - begin,
        }
        return Segmentation(scan, mask, findings, seconds)
