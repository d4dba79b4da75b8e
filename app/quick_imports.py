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


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Let the import of a module fail in this block, unless it is imported already; see Python's `sys.modules`."""
    modules: dict[str, Any] = sys.modules
    if module in modules:
        yield
        return
    modules[module] = None
    try:
        yield
    finally:
        del modules[module]


def import_nibabel() -> None:
    """Import nibabel without pydicom, which takes an eighth of the start-up.

    Where pydicom is installed, nibabel would import it for the sake of DICOM headers inside NIfTI files, which nothing
    here reads. The reader of DICOM imports pydicom itself when there is some to read.
    """
    if "nibabel" not in sys.modules:
        with without("pydicom"), without_collection():
            import nibabel  # noqa: F401
