"""Reading a scan and writing its mask, against nibabel and dcm2niix, in fresh processes, less an idle one's time."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.processes import in_turn, long_scan
from benchmarks.tables import COLUMNS, reading_rows
from evaluation.tables import table
from phantom.dicom import write_series

REPEATS = 4  # in one process, so that its start does not drown the writing
IMPORTS = """
import pathlib, sys
import nibabel as nib, numpy as np
from app.volumes import open_volume
from app.segmentation import ModelInfo, Segmentation
from app.results.nifti_mask import NiftiMask
from app.organs import Organ
scan, mask = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
"""
DICOM_IMPORTS = """
import pathlib, subprocess, sys
import nibabel as nib, numpy as np, pydicom
from app.volumes import open_volume
folder, mask, converter = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
"""
CONVERTED = """
for _ in range({repeats}):
    command = [converter, "-f", "converted", "-z", "n", "-b", "n", "-o", mask.parent, folder]
    subprocess.run(command, check=True, capture_output=True)
    nib.load(mask.parent / "converted.nii").get_fdata()
    (mask.parent / "converted.nii").unlink()
"""
LABELS = """
labels = np.zeros(nib.load(scan).shape, np.uint8, order="F")
labels[100:300, 150:400, ::2] = 1
labels[300:350, 200:300] = 2
model = ModelInfo(name="none", version="0", sha256={}, organs=tuple(Organ)[1:])
"""
PARTS = {
    "read": (
        IMPORTS,
        f"for _ in range({REPEATS}):\n    for z, plane in open_volume(scan).slices(): pass",
        f"for _ in range({REPEATS}): nib.load(scan).get_fdata()",
    ),
    "write": (
        IMPORTS + LABELS,
        f"for _ in range({REPEATS}):\n    volume = open_volume(scan)\n"
        "    one = Segmentation(case='scan', volume=volume, mask=labels, model=model)\n"
        "    NiftiMask().write(one, mask)",
        f"for _ in range({REPEATS}):\n    image = nib.load(scan)\n"
        "    nib.save(nib.Nifti1Image(labels, image.affine, image.header, dtype=np.uint8), mask)",
    ),
}
DICOM_PARTS = (
    DICOM_IMPORTS,
    f"for _ in range({REPEATS}):\n    for z, plane in open_volume(folder).slices(): pass",
    CONVERTED.format(repeats=REPEATS),
)


def reading(scan: pathlib.Path, folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds and MiB beyond the idle twin's, ours and the others', and their ratios."""
    mask = str(folder / "mask.nii.gz")
    found = {part: _compared(codes, [str(scan), mask], rounds) for part, codes in PARTS.items()}
    converter = pathlib.Path(sys.executable).with_name("dcm2niix")
    found["read DICOM"] = _compared(DICOM_PARTS, [str(dicom_series(scan, folder)), mask, str(converter)], rounds)
    return found


def dicom_series(scan: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The scan as a DICOM series, written once."""
    series = folder / f"series_{scan.name}"
    if not series.exists():
        image = nib.load(scan)
        x_mm, y_mm, z_mm = (float(mm) for mm in image.header.get_zooms()[:3])
        write_series(series, np.asarray(image.dataobj).astype(np.int16), (x_mm, y_mm, z_mm))
    return series


def _compared(codes: tuple[str, str, str], arguments: Sequence[str], rounds: int) -> dict[str, float]:
    idle, ours, plain = codes
    base, mine, theirs = in_turn([["-c", idle + code, *arguments] for code in ("", ours, plain)], rounds)
    return {
        "seconds": (mine.seconds - base.seconds) / REPEATS,
        "plain_seconds": (theirs.seconds - base.seconds) / REPEATS,
        "speed_up": (theirs.seconds - base.seconds) / (mine.seconds - base.seconds),
        "peak_mib": mine.peak_mib,
        "plain_peak_mib": theirs.peak_mib,
    }


if __name__ == "__main__":
    SCRATCH = pathlib.Path("cache/bench")
    print(table(COLUMNS, reading_rows(reading(long_scan(SCRATCH, 300), SCRATCH, rounds=1))))
