"""What only a GPU can show; and the GPU benchmark's code, as far as a CPU can run it."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from app.checkpoint import Checkpoint, bundled_models, load_checkpoint
from app.cli import main
from app.engines.torch_engine import Model, TorchEngine, load_onto
from app.inference.grid import network_grid
from app.inference.labelling import Labelling
from app.segmenter import Segmenter
from benchmarks import gpu
from tests.tiny import CONFIG

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable NVIDIA GPU")]
LITTLE_BYTES = 350e6  # 16 inputs of 1024 x 1024 fit, a batch of 16 does not


@pytest.fixture
def on_gpu(tiny_weights: pathlib.Path) -> Model:
    return load_onto(load_checkpoint(tiny_weights), torch.device("cuda"))


class TestOnGpu:
    """Run where there is a GPU, skipped elsewhere."""

    pytestmark = needs_gpu

    def test_fp16_labels_agree_with_float32(self, phantom_path: pathlib.Path) -> None:
        found = gpu.precision("fast", phantom_path, torch.device("cuda"), torch.float16)
        assert found["differing_share"] < 1e-3
        assert min(found[organ] for organ in ("liver", "kidneys", "spleen", "pancreas")) > 0.99

    def test_the_gpus_labels_agree_with_the_cpus(self, phantom_path: pathlib.Path) -> None:
        masks = [Segmenter.load("fast", device).segment(phantom_path) for device in ("cuda", "cpu")]
        assert np.mean(masks[0] != masks[1]) < 2e-3

    def test_a_full_gpu_is_survived_with_smaller_batches(self, on_gpu: Model) -> None:
        volume = np.full((16, 1024, 1024), 50, np.int16)
        labels = np.zeros(volume.shape, np.uint8)
        torch.cuda.empty_cache()
        limit, total = torch.cuda.memory_reserved() + LITTLE_BYTES, torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
        try:
            grid = network_grid((1024, 1024), (6.0, 6.0), on_gpu.config.spacing_mm)
            with TorchEngine(on_gpu, {}).session(grid, 16) as session:
                findings = Labelling(session, on_gpu.config, (5.0, 6.0, 6.0), labels).run(enumerate(volume))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert session.batch_size < 16
        assert findings.network_slices > 0

    def test_the_log_tells_the_gpus_memory(self, phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
        result = CliRunner().invoke(main, [str(phantom_path), str(tmp_path), "--device", "cuda"])
        assert result.exit_code == 0
        record = json.loads((tmp_path / "run_log.jsonl").read_text())
        assert record["precision"] == "float16"
        assert 0 < record["gpu_peak_mib"]["torch"] <= record["gpu_peak_mib"]["maximum"]


@pytest.mark.parametrize(("device", "name"), [("cuda", "paper"), ("cpu", "fast")])
def test_the_default_model_depends_on_the_device(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "find_device", lambda wanted: wanted)
    monkeypatch.setattr("app.segmenter.load_checkpoint", lambda path: Checkpoint(CONFIG, {}, {}))
    model = Model(CONFIG, nn.Identity(), torch.device("cpu"), torch.float32)
    monkeypatch.setattr("app.engines.torch_engine.load_onto", lambda *_: model)
    asked: list[str] = []
    monkeypatch.setattr("app.segmenter.find_model", asked.append)
    Segmenter.load(device=device)
    assert asked == [name]
    assert {"fast", "paper"} <= set(bundled_models())


def test_the_benchmarks_parts_on_a_cpu(tiny_weights: pathlib.Path, phantom_path: pathlib.Path) -> None:
    cpu = torch.device("cpu")
    model = gpu.load(str(tiny_weights), cpu)
    one, two = gpu.steady_state(model, (64, 96), batches=(1, 2), repeats=1)
    assert (one["batch"], two["batch"]) == (1, 2)
    for row in (one, two):
        assert row["tflops"] * 1e12 / row["slices_per_second"] == pytest.approx(
            one["tflops"] * 1e12 / one["slices_per_second"]
        )
        assert row["allocated_mib"] is None
    assert gpu.matrix_peak_tflops(cpu, torch.float32, side=64) > 0
    same = gpu.precision(str(tiny_weights), phantom_path, cpu, torch.float32)
    assert same == {"differing_share": 0.0, "liver": 1.0, "kidneys": 1.0, "spleen": 1.0, "pancreas": 1.0}
    shipped, single, *_, whole = (
        gpu.fresh_process(str(tiny_weights), phantom_path, "cpu", None, variant) for variant in gpu.VARIANTS
    )
    assert shipped["seconds"] > shipped["stages_s"]["start_up"] > 0
    assert shipped["gpu_flare2021_mib"] is None
    assert single["batch_size"] == 1
    assert whole["network_slices"] > 0


def test_the_benchmarks_tables() -> None:
    steady = {
        "batch": 4,
        "slices_per_second": 250.4,
        "slices_per_second_graph": 800.0,
        "tflops": 81.0,
        "allocated_mib": 300.2,
        "reserved_mib": 400.0,
    }
    fresh = {"seconds": 3.456, "stages_s": {"start_up": 1.26, "network": 0.5}, "gpu_flare2021_mib": 900}
    model = {
        "grid": (512, 512),
        "steady_state": [steady],
        "fresh_process": {"as shipped": [fresh]},
        "precision": {"differing_share": 2e-6, "liver": 1.0, "kidneys": 0.99996, "spleen": 1.0, "pancreas": 0.5},
    }
    text = gpu.summary(
        {
            "version": "9.8.7",
            "date": "2026-01-02",
            "weights": {"paper": {"version": "0.2.0"}},
            "device": "Card",
            "torch": "2",
            "matrix_peak_tflops": 324.0,
            "gpu_idle_mib": 480,
            "models": {"paper": model},
        }
    )
    assert "Version 9.8.7 with `paper` 0.2.0, 2026-01-02;\nCard, torch 2, 480 MiB of it in use before." in text
    assert "| `paper`, 512 x 512 | 4 | 250 | 800 | 81.0 | 25% | 300 | 400 |" in text
    assert "| `paper` | as shipped | 3.5 s | 1.3 s | 0.5 s | 900 |" in text
    assert "| `paper` | 2.0 | 1.0000 | 1.0000 | 1.0000 | 0.5000 |" in text
