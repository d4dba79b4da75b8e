"""The one record of a segmented scan: outputs are made from it, the log's line is, and Python callers get it."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ResultError
from .inference.gathering import Gathering, Reduced
from .organs import Organ, organ_voxels
from .volumes import Volume, identity

# A removed piece is worth a word from this size on, and from this share of the smallest piece that was kept.
LARGE_PIECE_ML, LARGE_PIECE = 10.0, 0.25
# A spleen larger than this and than the liver is a doubt; in stacks of few slices, either may be cut.
LARGE_SPLEEN_ML = 300.0
MIRROR_ROWS = 4  # every fourth row is enough to say which of two organs lies to the left


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Which model segmented a scan.

    Attributes:
        name: of the model.
        version: of its weights.
        sha256: of its weights file, by name.
        organs: that it knows, in the order of its labels.
    """

    name: str
    version: str
    sha256: Mapping[str, str]
    organs: tuple[Organ, ...]


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no one answer to ==, and no hash
class Segmentation:
    """A segmented scan.

    Attributes:
        case: its name.
        volume: the scan.
        mask: values of `Organ`, uint8, in the scan's stored axis order and shape, Fortran-contiguous; read-only, since
            volumes and outputs are of this mask and no other.
        model: which model made it.
        confidence: of the network in every organ, see docs/OUTPUTS.md; None for an organ that it did not see.
        check: organs of which the network is so unsure that they should be looked at.
        components: voxels of every organ's components before all but its largest were removed, the largest first; empty
            without postprocessing.
        intensity_doubt: a sentence if the scan's values do not look like Hounsfield units.
        gathering: what passed by of the scan; None where no output asked for it.
        network_slices: slices that went through the network.
        batch_size: slices that went through it at a time, at most.
        seconds: by stage.
    """

    case: str
    volume: Volume
    mask: NDArray[np.uint8]
    model: ModelInfo
    confidence: Mapping[Organ, float | None] = field(default_factory=dict)
    check: tuple[Organ, ...] = ()
    components: Mapping[Organ, Sequence[int]] = field(default_factory=dict)
    intensity_doubt: str | None = None
    gathering: Gathering | None = None
    network_slices: int = 0
    batch_size: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mask = self.mask.view()
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What arrives in another process is read-only there too."""
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def organs(self) -> tuple[Organ, ...]:
        """The organs that the model knows."""
        return self.model.organs

    @cached_property
    def voxels(self) -> dict[Organ, int]:
        """Voxels of every organ, 0 where it is missing."""
        counts = organ_voxels(self.mask)
        return {organ: counts[organ] for organ in self.organs}

    @cached_property
    def volumes_ml(self) -> dict[Organ, float]:
        """Millilitres of every organ, 0 where it is missing."""
        return {organ: count * self.volume.geometry.voxel_ml for organ, count in self.voxels.items()}

    def removed(self, organ: Organ) -> Sequence[int]:
        """Voxels of an organ's components that were removed, the largest first."""
        return self.components.get(organ, ())[organ.components :]

    @cached_property
    def mask_sha256(self) -> str:
        """A digest of the mask's voxels."""
        return hashlib.sha256(self.mask.reshape(-1, order="F").data).hexdigest()

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the scan or the mask, a sentence each."""
        return (*self.volume.warnings, *self._doubts())

    def _doubts(self) -> Iterator[str]:
        if self.intensity_doubt:
            yield self.intensity_doubt
        if missing := [organ.key for organ, count in self.voxels.items() if not count]:
            yield f"no {', no '.join(missing)} found; check that this is an abdominal CT"
        if self.volume.geometry.orientation_known and (odd := self._mirrored()):
            yield f"{odd}: the scan's header may swap left and right; check its orientation"
        for organ, ml in self.volumes_ml.items():
            if ml > organ.largest_ml:
                yield (
                    f"{organ.key} of {ml:.0f} ml, larger than any known ({organ.largest_ml} ml); "
                    "check the scan's spacing and intensities"
                )
        for organ in self.organs:
            if removed := self.removed(organ):
                ml = removed[0] * self.volume.geometry.voxel_ml
                if ml >= LARGE_PIECE_ML and removed[0] >= LARGE_PIECE * self.components[organ][organ.components - 1]:
                    yield (
                        f"a piece of {ml:.0f} ml labelled as {organ.key} was removed; "
                        "if it belongs to the organ, keep it with --no-postprocess (in Python, postprocess=False)"
                    )
        for organ in self.check:
            yield f"check the {organ.key}: the network is unsure of it (confidence {self.confidence[organ]:.2f})"

    def _mirrored(self) -> str | None:
        """What tells that the body may be its mirror image; None if nothing does.

        A network that saw no such body takes the liver on the wrong side for a spleen.
        """
        organs = (Organ.LIVER, Organ.SPLEEN)
        liver_ml, spleen_ml = (self.volumes_ml.get(organ, 0.0) for organ in organs)
        if not (liver_ml and spleen_ml):
            return None
        if spleen_ml > max(liver_ml, LARGE_SPLEEN_ML):
            return f"the spleen ({spleen_ml:.0f} ml) is larger than the liver ({liver_ml:.0f} ml)"
        counts = np.zeros((len(organs), self.labels_zyx.shape[2]))  # by column; these grow to the left
        for plane in self.labels_zyx[:, ::MIRROR_ROWS]:  # a copy of all would take as much memory as the mask
            if plane.any():
                counts += [(plane == organ).sum(axis=0) for organ in organs]
        if not counts.any(axis=1).all():
            return None
        liver, spleen = counts @ np.arange(counts.shape[1]) / counts.sum(axis=1)
        return "the liver lies to the left of the spleen" if liver > spleen else None

    @property
    def labels_zyx(self) -> NDArray[np.uint8]:
        """The mask as (Z, Y, X) in LPS order, a view."""
        return self.volume.geometry.orient(self.mask)

    @cached_property
    def small(self) -> Reduced | None:
        """The small copy of the scan, see `Gathering.reduced`; several outputs show it."""
        return None if self.gathering is None else self.gathering.reduced(self.labels_zyx)

    def save(self, path: str | os.PathLike[str], output: str = "nifti") -> None:
        """Write one output, whole or not at all; a file of that name is replaced.

        Args:
            path: of the file.
            output: a name of `results.RESULTS`, such as `nifti`, `statistics` or `dicom-seg`. A `dicom-sr` refers to
                the `dicom-seg` of the same segmentation; save that too.

        Raises:
            InputError: there is no such output, or its library is not installed.
            ResultError: it cannot be written, it would overwrite the scan, or the scan's format does not allow it.
        """
        path = pathlib.Path(path)
        if identity(path) is not None and identity(path) == identity(self.volume.path):
            raise ResultError(f"{path}: is the scan that was segmented; choose another name")
        from .results import make_results  # outputs know the record, so the record asks for them late

        make_results([output])[output].write(self, path)
