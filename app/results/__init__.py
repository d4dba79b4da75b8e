"""What is written of a case: one class per output, one table from the name of an output to its class.

result.py      Segmented, what outputs are made from; Result, what each of them offers
nifti_mask.py  the mask on the scan's own grid
dicom_seg.py   the mask as a DICOM segmentation

To add an output, write a module with a class that satisfies `Result`, and give it a row in `RESULTS`.
"""

from __future__ import annotations

from .dicom_seg import DicomSeg
from .nifti_mask import NiftiMask
from .result import Result, Segmented

__all__ = ["DEFAULT_RESULTS", "RESULTS", "DicomSeg", "NiftiMask", "Result", "Segmented"]

RESULTS: dict[str, type[Result]] = {"nifti": NiftiMask, "dicom-seg": DicomSeg}
DEFAULT_RESULTS = ("nifti",)  # the challenge wants the mask alone
