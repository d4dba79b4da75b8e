"""What an output is made from, and what every output offers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..volumes import Volume

PROGRAM = "hrnet-ocr-abdomen"  # what outputs call their maker


def beside(mask_path: pathlib.Path, extension: str) -> pathlib.Path:
    """The path of an output whose name differs from the mask's in its extension."""
    return mask_path.with_name(mask_path.name.removesuffix(".gz").removesuffix(".nii") + extension)


@dataclass(frozen=True)
class Segmented:
    """A segmented scan, as outputs see it.

    Attributes:
        volume: the scan.
        mask: labels 0..4 in the volume's stored axis order, uint8, Fortran-contiguous.
        model: name of the model.
        model_version: of its weights.
        weights_sha256: of each weights file.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    model: str
    model_version: str
    weights_sha256: Mapping[str, str]


class Result(Protocol):
    """One kind of output.

    Attributes:
        needs_dicom: whether the scan must have come as DICOM.
    """

    needs_dicom: bool

    def path(self, mask_path: pathlib.Path) -> pathlib.Path:
        """Where the output of a case goes, given where its NIfTI mask would go."""
        ...

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether this program wrote a file, and so may replace it."""
        ...

    def write(self, segmented: Segmented, path: pathlib.Path) -> None:
        """Write the output of one case, whole or not at all.

        Raises:
            ResultError: it cannot be written.
        """
        ...
