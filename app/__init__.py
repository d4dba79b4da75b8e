"""Multi-organ segmentation of abdominal CT: liver, kidneys, spleen and pancreas, by HRNet + OCR, slice by slice.

from app import Segmenter
mask = Segmenter.load("fast").segment("scan.nii.gz")
"""

from typing import TYPE_CHECKING

from .version import __version__

__all__ = ["Segmenter", "__version__"]

if TYPE_CHECKING:
    from .segmenter import Segmenter


def __getattr__(name: str) -> object:
    """Import torch only when it is asked for: `--help`, `--version` and usage errors do without."""
    if name == "Segmenter":
        from .segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
