"""The benchmarks' programs run, on a scan that is too small to tell anything."""

from __future__ import annotations

import pathlib

from benchmarks.reading import reading
from tests.phantom import write_phantom


def test_reading_and_writing_are_compared(tmp_path: pathlib.Path) -> None:
    scan = tmp_path / "scan_0000.nii.gz"
    write_phantom(scan, None, (72, 80, 12), (4.0, 3.5, 20.0))
    found = reading(scan, tmp_path, rounds=1)
    assert set(found) == {"read", "write", "read DICOM"}
    assert all(row["peak_mib"] > 10 and row["plain_peak_mib"] > 10 for row in found.values())
