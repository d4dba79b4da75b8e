"""What an output is made from, and what every output offers."""

from __future__ import annotations

import pathlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultError
from ..organs import Organ, organ_voxels
from ..volumes import Volume
from ..whole_file import beside, whole_file
from .gathering import Gathering, Reduced

__all__ = ["PROGRAM", "Result", "Segmented", "beside", "write_whole"]

PROGRAM = "hrnet-ocr-abdomen"  # what outputs call their maker
MARKED_BYTES = 256  # within which a file says so


def write_whole(path: pathlib.Path, content: bytes, mark: bytes | None = None) -> None:
    """Write a file whole or not at all.

    Args:
        path: of it.
        content: of it.
        mark: what this program's files of that name hold near their beginning; one without it is left alone. None: the
            caller has seen to that.

    Raises:
        ResultError: it cannot be written, or others wrote a file of that name.
    """
    try:
        if mark is not None and path.exists():
            with path.open("rb") as there:
                if mark not in there.read(MARKED_BYTES):
                    raise ResultError(f"{path}: this program did not write it and leaves it alone; move it")
        with whole_file(path) as stream:
            stream.write(content)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror}); check the folder and its disk") from error


@dataclass(frozen=True)
class Segmented:
    """A segmented scan, as outputs see it.

    Attributes:
        volume: the scan.
        mask: labels 0..4 in the volume's stored axis order, uint8, Fortran-contiguous.
        model: name of the model.
        model_version: of its weights.
        weights_sha256: of each weights file.
        case: its name.
        gathering: what passed by of the scan; None where no output asked for it.
        components_removed: of every organ, because they were not its largest.
        confidence: of the network in every organ, see docs/OUTPUTS.md; None for an organ that it did not see.
        check: organs of which the network is so unsure that they should be looked at.
        warnings: what a user should know about the scan or the mask, a sentence each.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    model: str
    model_version: str
    weights_sha256: Mapping[str, str]
    case: str = ""
    gathering: Gathering | None = None
    components_removed: Mapping[Organ, int] = field(default_factory=dict)
    confidence: Mapping[Organ, float | None] = field(default_factory=dict)
    check: Sequence[Organ] = ()
    warnings: Sequence[str] = ()

    @cached_property
    def voxels(self) -> dict[Organ, int]:
        """Voxels of every organ, 0 where it is missing."""
        return organ_voxels(self.mask)

    @cached_property
    def small(self) -> Reduced | None:
        """The small copy of the scan, see `Gathering.reduced`; several outputs show it."""
        return None if self.gathering is None else self.gathering.reduced(self.labels_zyx)

    def millilitres(self, organ: Organ) -> float:
        """The volume of an organ."""
        return self.voxels[organ] * self.volume.geometry.voxel_ml

    @property
    def labels_zyx(self) -> NDArray[np.uint8]:
        """The mask as (Z, Y, X) in LPS order, a view."""
        return self.volume.geometry.orient(self.mask)


class Result(ABC):
    """One kind of output.

    Attributes:
        needs_dicom: whether the scan must have come as DICOM.
        needs_scan: whether it is made from the scan's values too, see `Gathering`.
    """

    needs_dicom = False
    needs_scan = False

    @abstractmethod
    def path(self, mask_path: pathlib.Path) -> pathlib.Path:
        """Where the output of a case goes, given where its NIfTI mask would go."""

    @abstractmethod
    def wrote(self, path: pathlib.Path) -> bool:
        """Whether this program wrote a file, and so may replace it."""

    @abstractmethod
    def write(self, segmented: Segmented, path: pathlib.Path) -> None:
        """Write the output of one case, whole or not at all.

        Raises:
            ResultError: it cannot be written.
        """

    def finish(self, output: pathlib.Path) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Write what belongs to the whole folder of outputs, at the end of a run.

        Raises:
            ResultError: it cannot be written.
        """
