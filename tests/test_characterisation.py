"""What the bundled `fast` makes of a few phantoms, pinned: a change of the code's shape must not change a mask.

`golden_masks.npz` was written by `python -m tests.test_characterisation` on a CPU that runs `fast` in float32. There
the masks agree bit for bit; another processor rounds otherwise, which moves a few voxels at the organs' borders.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from app import Segmenter
from phantom import write_phantom
from tests.conftest import ROOT

GOLDEN = pathlib.Path(__file__).with_name("golden_masks.npz")
LARGEST_SHARE = 0.01  # of the organ voxels that may differ on another processor
ORIENTATIONS = [
    "".join(axes) for order in itertools.permutations(("LR", "PA", "SI")) for axes in itertools.product(*order)
]
PHANTOMS = {
    "thick": ((64, 64, 14), (4.0, 4.0, 18.0), "LPS"),
    "thin": ((64, 64, 100), (4.0, 4.0, 1.0), "LPS"),
    "stored with slices as the fastest axis": ((64, 72, 20), (4.0, 4.0, 9.0), "SAR"),
}
RECORD = {
    *("case", "status", "error", "seconds", "warnings", "shape", "spacing_zyx_mm", "network_slices", "batch_size"),
    *(
        "volumes_ml",
        "confidence",
        "gpu_peak_mib",
        "host_peak_rss_mib",
        "device",
        "precision",
        "model",
        "weights_sha256",
        "versions",
    ),
}
NESTED = {
    "seconds": {"start_up", "read", "network", "postprocess", "write", "total"},
    "volumes_ml": {"liver", "kidneys", "spleen", "pancreas"},
    "confidence": {"liver", "kidneys", "spleen", "pancreas"},
    "gpu_peak_mib": {"flare2021", "maximum", "torch"},
    "versions": {"app", "weights", "torch", "cuda", "openvino", "python"},
}


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("fast", "cpu")


def masks(folder: pathlib.Path, segmenter: Segmenter) -> dict[str, NDArray[np.uint8]]:
    """The mask of every phantom, and of one cut by the field of view."""
    found = {}
    for name, (shape, spacing, axes) in PHANTOMS.items():
        write_phantom(folder / "phantom_0000.nii.gz", None, shape, spacing, axes, seed=3)
        found[name] = segmenter.segment(folder / "phantom_0000.nii.gz")
    whole = nib.load(folder / "phantom_0000.nii.gz")
    nib.save(whole.slicer[:, 20:, 15:60], folder / "cut_0000.nii.gz")
    return {**found, "cut by the field of view": segmenter.segment(folder / "cut_0000.nii.gz")}


def test_the_masks_are_those_of_before(tmp_path: pathlib.Path, segmenter: Segmenter) -> None:
    golden = np.load(GOLDEN)
    found = masks(tmp_path, segmenter)
    assert set(found) == set(golden.files)
    for name, mask in found.items():
        assert mask.dtype == np.uint8
        assert mask.shape == golden[name].shape
        assert len(np.unique(golden[name])) == 5, f"{name}: the phantom must show every organ"
        differing = np.count_nonzero(mask != golden[name])
        assert differing <= LARGEST_SHARE * np.count_nonzero(golden[name]), f"{name}: {differing} voxels differ"


def test_48_orientations_give_one_mask(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    segmenter = Segmenter.load(tiny_weights, "cpu")
    shape, spacing = (60, 56, 9), (4.2, 4.2, 28.0)
    for axes in ORIENTATIONS:
        write_phantom(tmp_path / "phantom_0000.nii.gz", None, shape, spacing, axes, seed=3)
        mask = nib.Nifti1Image(segmenter.segment(tmp_path / "phantom_0000.nii.gz"), None)
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(axes), nib.orientations.axcodes2ornt("LPS")
        )
        lps = nib.orientations.apply_orientation(np.asarray(mask.dataobj), turn)
        if axes == ORIENTATIONS[0]:
            first = lps
        assert np.count_nonzero(first) > 1000
        assert np.count_nonzero(first != lps) == 0, axes


def test_the_fields_of_the_run_log(tmp_path: pathlib.Path) -> None:
    write_phantom(tmp_path / "in" / "phantom_0000.nii.gz", None, (32, 32, 6), (8.0, 8.0, 40.0))
    (tmp_path / "in" / "text_0000.nii.gz").write_text("not a scan")
    command = [sys.executable, "-m", "app", str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, env=os.environ, check=False, capture_output=True)
    done, failed = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert set(done) == RECORD
    assert {name: set(done[name]) for name in NESTED} == NESTED
    subprocess.run([*command, "--skip-existing"], cwd=ROOT, check=False, capture_output=True)
    skipped = json.loads((tmp_path / "out" / "run_log.jsonl").read_text().splitlines()[2])
    assert (failed["status"], skipped["status"]) == ("failed", "skipped")
    assert "text_0000.nii.gz: text and not a scan ('not a scan ...')" in failed["error"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        golden: dict[str, Any] = {**masks(pathlib.Path(scratch), Segmenter.load("fast", "cpu"))}
        np.savez_compressed(GOLDEN, **golden)
