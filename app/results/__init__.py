"""What is written of a case: one class per output, one table from the name of an output to its class.

nifti_mask.py  the mask on the scan's own grid

To add an output, write a module with a class that satisfies `Result`, and give it a row in `RESULTS`.
"""

from __future__ import annotations

import pathlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..volumes import Volume
from .nifti_mask import NiftiMask

__all__ = ["RESULTS", "NiftiMask", "Result"]


class Result(Protocol):
    """One kind of output."""

    def path(self, mask_path: pathlib.Path) -> pathlib.Path:
        """Where the output of a case goes, given where its mask goes."""
        ...

    def write(self, mask: NDArray[np.uint8], volume: Volume, path: pathlib.Path) -> None:
        """Write the output of one case, whole or not at all.

        Args:
            mask: labels 0..4 in the volume's stored axis order, Fortran-contiguous.
            volume: the scan.
            path: where to.

        Raises:
            ResultError: it cannot be written.
        """
        ...


RESULTS: dict[str, type[Result]] = {"nifti": NiftiMask}
