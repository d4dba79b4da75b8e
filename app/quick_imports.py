"""What makes the program's start quick: it starts once per scan, and most of a short run is importing libraries.

Only the program uses this; importing the package as a library changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Disable the garbage collector while libraries are imported: they make many objects, none of which is garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays; later collections need not look at it
        gc.enable()


def import_nibabel() -> None:
    """Import nibabel without pydicom, which takes an eighth of the start-up.

    Where pydicom is installed, nibabel would import it for the sake of DICOM headers inside NIfTI files, which nothing
    here reads. The reader of DICOM imports pydicom itself when there is some to read.
    """
    modules: dict[str, Any] = sys.modules
    if "nibabel" in modules or "pydicom" in modules:
        return
    modules["pydicom"] = None  # so `import pydicom` fails, see Python's documentation of sys.modules
    try:
        with without_collection():
            import nibabel  # noqa: F401
    finally:
        del modules["pydicom"]
