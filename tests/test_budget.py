"""What a run may cost, in terms that do not depend on a clock."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.checkpoint import Checkpoint
from app.engines.batching import activation_bytes
from app.engines.torch_engine import load_onto
from app.network import build, tensors_of
from app.volumes import gzip_file, open_volume
from benchmarks.growth import over_slices
from tests.conftest import ROOT
from tests.tiny import CONFIG

MIB_300_SLICES = 1229  # 1.2 GiB
HEADER_LOOK = 540  # bytes that are read to recognise NIfTI-1 and 2
NEVER = {"torch", "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "cv2", "pandas"}


def test_a_scan_is_decompressed_once(phantom_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decompressed = []

    class Counting(gzip_file.GunzipReader):
        def read(self, size: int, /) -> bytes:
            data = super().read(size)
            decompressed.append(len(data))
            return data

    monkeypatch.setattr(gzip_file, "GunzipReader", Counting)
    volume = open_volume(phantom_path)
    voxels = 2 * sum(plane.size for _, plane in volume.slices())
    assert sum(decompressed) == HEADER_LOOK + 352 + voxels


def test_nothing_is_imported_that_a_run_does_not_need() -> None:
    code = "import sys; from app import Segmenter; Segmenter.load('fast', 'cpu'); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not NEVER & set(shown.stdout.split())
    assert "openvino" in shown.stdout.split()


def test_memory_of_300_slices(tmp_path: pathlib.Path) -> None:
    (row,) = over_slices(tmp_path, (300,), "fast")
    assert row["peak_mib"] < MIB_300_SLICES
    assert row["network_slices"] < 300 / 3  # thin slices: anchors every 3 mm, fewer where scouts show nothing


def allocator_peak(network: torch.nn.Module, images: torch.Tensor) -> int:
    """The most bytes that were allocated at once, beyond what there was before, by one pass on the CPU."""
    with torch.inference_mode():
        network(images)  # what is kept for later passes is not this one's
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            network(images)
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize("dimensions", [(18, 128, 64), (48, 512, 256)], ids=["fast", "paper"])
def test_a_batch_takes_no_more_than_its_estimate(dimensions: tuple[int, int, int]) -> None:
    """And twice the slices take at most twice the memory."""
    width, channels, keys = dimensions
    config = replace(CONFIG, width=width, ocr_channels=channels, key_channels=keys)
    model = load_onto(
        Checkpoint(config, tensors_of(build(config).state_dict()), {}), torch.device("cpu"), torch.float32
    )
    one, two = (allocator_peak(model.network, torch.rand(n, config.channels_in, 128, 128)) for n in (1, 2))
    assert 0.2 * activation_bytes(config, (128, 128), value_bytes=4) < one  # the estimate is not idle either
    assert one < activation_bytes(config, (128, 128), value_bytes=4)
    assert two < 2.05 * one
