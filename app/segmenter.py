"""A model, loaded once, and what it makes of one scan: the Python call behind everything else.

All defaults are here: which model, which device, whether small components are removed.
"""

from __future__ import annotations

import contextlib
import logging
import numbers
import os
import pathlib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import find_model, load_checkpoint
from .engines import Engine, choose_engine
from .errors import InputError, VolumeError
from .inference.body import body_box
from .inference.components import keep_largest
from .inference.gathering import Gathering
from .inference.grid import network_grid
from .inference.labelling import FindBox, Labelling, OnSlice
from .organs import Organ
from .segmentation import ModelInfo, Segmentation
from .volumes import Slices, Volume, open_image, open_volume

log = logging.getLogger(__package__)

# By device. `paper` is the more accurate over the scans kept apart. A GPU takes no longer for it; a CPU, five times as
# long.
DEFAULT_MODEL = {"cuda": "paper", "cpu": "fast"}
MODEL_SUFFIX = ".safetensors"

# Below these the network's own confidence says that an organ should be looked at, by model. Chosen so
# that in `make confidence` scans below them score worse; no liver or spleen was bad enough to choose a limit by.
CHECK_BELOW = {
    "fast": {Organ.KIDNEYS: 0.95, Organ.PANCREAS: 0.89},
    "paper": {Organ.KIDNEYS: 0.955, Organ.PANCREAS: 0.9},
}


class Segmenter:
    """A model, loaded once and ready for any number of scans.

    Args:
        engine: the model on its device.
        batch_size: slices in the network at a time; None: the engine chooses.
        postprocess: keep only the largest components of each organ.

    Raises:
        InputError: the batch size is none.
    """

    def __init__(self, engine: Engine, *, batch_size: int | None = None, postprocess: bool = True) -> None:
        if batch_size is not None and (not isinstance(batch_size, numbers.Integral) or batch_size < 1):
            raise InputError(f"batch_size {batch_size!r}: expected a whole number from 1, or None")
        self.engine, self.batch_size, self.postprocess = engine, batch_size, postprocess
        config = engine.config
        self.model = ModelInfo(name=config.name, version=config.version, sha256=engine.sha256, organs=config.organs[1:])

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str] | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        postprocess: bool = True,
        engine: str = "auto",
    ) -> Segmenter:
        """Load a bundled model by name, or a weights file by path (a Path, or a string ending with .safetensors).

        Args:
            name: `fast`, `paper`, or a path; None: `DEFAULT_MODEL` of the device.
            device: `auto`, `cuda` or `cpu`.
            batch_size: slices in the network at a time; None: the engine chooses.
            postprocess: keep only the largest components of each organ.
            engine: a name of `engines.ENGINES`; `auto`: torch on a GPU, OpenVINO on a CPU where it is installed.

        Raises:
            CheckpointError: the weights are missing, altered or foreign.
            DeviceError: the device or the engine is not there, or there is no room for the weights.
            InputError: the batch size is none.
        """
        kind, chosen = choose_engine(engine, str(device))  # torch's own devices too
        if device == "auto" and chosen == "cpu":
            log.warning("running on the CPU: no usable NVIDIA GPU (a container needs --gpus all)")
        name = DEFAULT_MODEL[chosen] if name is None else name
        is_file = not isinstance(name, str) or name.endswith(MODEL_SUFFIX)
        checkpoint = load_checkpoint(pathlib.Path(name) if is_file else find_model(str(name)))
        return cls(kind.load(checkpoint, chosen), batch_size=batch_size, postprocess=postprocess)

    def segment(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """Segment one scan and return its mask alone. What is odd about either is logged as a warning.

        Args:
            path: a NIfTI file (.nii or .nii.gz), or a DICOM file or folder of one series.

        Returns:
            Values of `Organ`, uint8, in the file's own axis order and shape.

        Raises:
            InputError: a library that the format needs is not installed.
            VolumeError: it is not a readable CT.
            InferenceError: there is not enough memory.
        """
        segmentation = self.run(path, gather=False)
        for warning in segmentation.warnings:
            log.warning("%s: %s", segmentation.volume.path.name, warning)
        mask = segmentation.mask
        mask.flags.writeable = True  # it is the caller's now, and no record's
        return mask

    def run(self, source: Any, affine: Any = None, *, gather: bool = True) -> Segmentation:  # noqa: ANN401
        """Segment one scan.

        Args:
            source: a path as for `segment`; or a 3-D nibabel image in Hounsfield units; or a 3-D array of them,
                together with `affine`.
            affine: (4, 4), voxel -> patient RAS, mm; for an array.
            gather: keep of the scan what `statistics`, `preview` and `viewer` need, so that they can be saved.

        Returns:
            Mask, volumes, confidence and warnings; its `save` writes any output.

        Raises:
            InputError: a library that the format needs is not installed.
            VolumeError: it is not a readable CT.
            InferenceError: there is not enough memory.
        """
        is_path = isinstance(source, (str, os.PathLike))
        if is_path and not os.fspath(source):
            raise VolumeError("an empty path instead of a scan's; is a variable unset?")
        if is_path and affine is not None:
            raise VolumeError(f"{source}: an affine was given besides a file, which has its own; leave it out")
        # Absolute: outputs read from the scan, or must not overwrite it, wherever the program works by then.
        volume = open_volume(pathlib.Path(source).absolute()) if is_path else open_image(source, affine)
        return self.segment_volume(volume, volume.slices(), case=volume.path.name, gather=gather)

    def segment_volume(
        self,
        volume: Volume,
        slices: Slices,
        *,
        case: str,
        gather: bool = False,
        on_slice: OnSlice = lambda count: None,
        find_box: FindBox = body_box,
    ) -> Segmentation:
        """Segment an opened scan, given its slices, which are closed at the end.

        Args:
            volume: the scan.
            slices: of it.
            case: its name.
            gather: see `run`.
            on_slice: called with the number of slices done since the last call.
            find_box: gives the part of some slices that the network sees.
        """
        geometry, config = volume.geometry, self.engine.config
        grid = network_grid(geometry.shape_zyx[1:], geometry.spacing_zyx_mm[1:], config.spacing_mm)
        gathering = Gathering(geometry) if gather else None
        with contextlib.closing(slices), self.engine.session(grid, self.batch_size) as session:
            mask = np.zeros(geometry.shape, np.uint8, order="F")
            labels = geometry.orient(mask)
            labelling = Labelling(
                session, config, geometry.spacing_zyx_mm, labels, find_box=find_box, witness=gathering
            )
            findings = labelling.run(slices, on_slice)
        begin = time.perf_counter()
        components = keep_largest(mask, self.model.organs) if self.postprocess else {}
        least = CHECK_BELOW.get(config.name, {})
        return Segmentation(
            case=case,
            volume=volume,
            mask=mask,
            model=self.model,
            confidence=findings.confidence,
            check=tuple(o for o, value in findings.confidence.items() if value is not None and value < least.get(o, 0)),
            components=components,
            intensity_doubt=findings.intensities.doubts(),
            gathering=gathering,
            network_slices=findings.network_slices,
            batch_size=session.batch_size,
            seconds={
                "read": findings.read_seconds,
                "network": findings.network_seconds,
                "postprocess": time.perf_counter() - begin,
            },
        )
