"""What a run may cost, in terms that do not depend on a clock."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from isal import igzip

import app.scan
from app.scan import open_scan
from benchmarks.growth import over_slices
from tests.conftest import ROOT

MIB_300_SLICES = 1229  # 1.2 GiB
HEADER_LOOK = 540  # bytes that are read to recognise NIfTI-1 and 2
NEVER = {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "cv2", "pandas"}


def test_a_scan_is_decompressed_once(phantom_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decompressed = []

    class Counting(igzip.IGzipFile):
        def read(self, size: int | None = -1) -> bytes:
            data: bytes = super().read(size)
            decompressed.append(len(data))
            return data

    monkeypatch.setattr(app.scan.igzip, "IGzipFile", Counting)
    scan = open_scan(phantom_path)
    voxels = 2 * sum(plane.size for _, plane in scan.slices())
    assert sum(decompressed) == HEADER_LOOK + 352 + voxels


def test_nothing_is_imported_that_a_run_does_not_need() -> None:
    code = "import sys; from app import Segmenter; Segmenter.load('fast', 'cpu'); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not NEVER & set(shown.stdout.split())
    assert "torch" in shown.stdout.split()


def test_memory_of_300_slices(tmp_path: pathlib.Path) -> None:
    (row,) = over_slices(tmp_path, (300,), "fast")
    assert row["peak_mib"] < MIB_300_SLICES
    assert row["network_slices"] < 300 / 3  # thin slices: anchors every 4 mm, fewer where scouts show nothing
