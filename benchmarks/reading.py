"""Reading a scan and writing its mask, against plain nibabel, in fresh processes; an idle one's time is taken off."""

from __future__ import annotations

import pathlib
from typing import Any

from benchmarks.processes import in_turn

REPEATS = 4  # in one process, so that its start does not drown the writing
IMPORTS = """
import pathlib, sys
import nibabel as nib, numpy as np
from app.volumes import open_volume
from app.results import NiftiMask, Segmented
scan, mask = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
"""
LABELS = """
labels = np.zeros(nib.load(scan).shape, np.uint8, order="F")
labels[100:300, 150:400, ::2] = 1
labels[300:350, 200:300] = 2
"""
PARTS = {
    "read": (
        IMPORTS,
        f"for _ in range({REPEATS}):\n    for z, plane in open_volume(scan).slices(): pass",
        f"for _ in range({REPEATS}): nib.load(scan).get_fdata()",
    ),
    "write": (
        IMPORTS + LABELS,
        f"for _ in range({REPEATS}): NiftiMask().write(Segmented(open_volume(scan), labels, , , {{}}), mask)",
        f"for _ in range({REPEATS}):\n    image = nib.load(scan)\n"
        "    nib.save(nib.Nifti1Image(labels, image.affine, image.header, dtype=np.uint8), mask)",
    ),
}


def reading(scan: pathlib.Path, folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds and MiB beyond the idle twin's, ours and nibabel's, and their ratios."""
    files, found = [str(scan), str(folder / "mask.nii.gz")], {}
    for part, (idle, ours, plain) in PARTS.items():
        base, mine, theirs = in_turn([["-c", idle + code, *files] for code in ("", ours, plain)], rounds)
        found[part] = {
            "seconds": (mine.seconds - base.seconds) / REPEATS,
            "nibabel_seconds": (theirs.seconds - base.seconds) / REPEATS,
            "speed_up": (theirs.seconds - base.seconds) / (mine.seconds - base.seconds),
            "peak_mib": mine.peak_mib,
            "nibabel_peak_mib": theirs.peak_mib,
        }
    return found
