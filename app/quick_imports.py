"""What makes the program's start quick: it starts once per scan, and most of a short run is importing libraries.

Importing this imports nibabel without pydicom, so it comes first. Where pydicom is installed, nibabel would take it
along for the sake of DICOM headers inside NIfTI files, which nothing here reads. DICOM is read as ever: its reader
imports pydicom when there is some to read. Only the program imports this; whoever uses the package as a library gets
nibabel as it is.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Look for no garbage while libraries are imported: they make many objects, and none of them is garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays; later collections need not look at it
        gc.enable()


modules: dict[str, Any] = sys.modules
if "nibabel" not in modules and "pydicom" not in modules:
    modules["pydicom"] = None  # so `import pydicom` fails, see Python's documentation of sys.modules
    try:
        with without_collection():
            import nibabel  # noqa: F401
    finally:
        del modules["pydicom"]
