"""nibabel, imported without pydicom: for a program that starts once per scan, and imported by it before anything else.

Where pydicom is installed, nibabel imports it for the sake of DICOM headers inside NIfTI files, which nothing here
reads; that was an eighth of the start-up. DICOM is read as ever: it imports pydicom when there is some to read. Whoever
imports this package as a library gets nibabel as it is.
"""

from __future__ import annotations

import sys
from typing import Any

modules: dict[str, Any] = sys.modules
if "nibabel" not in modules and "pydicom" not in modules:
    modules["pydicom"] = None  # so `import pydicom` fails, see Python's documentation of sys.modules
    try:
        import nibabel  # noqa: F401
    finally:
        del modules["pydicom"]
