"""python -m benchmarks.gpu OUT [--scan SCAN]: time, throughput and memory on an NVIDIA GPU; JSON and a table.

On 512 x 512 x 100 voxels of 0.8 x 0.8 x 3 mm, for `fast` and for `paper`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from app.checkpoint import find_model, load_checkpoint
from app.engines.torch_engine import Model, TorchEngine, load_onto
from app.gpu_memory import MIB, MemorySampler, nvml_reader, peak_flare2021
from app.inference.grid import network_grid
from app.organs import ORGANS
from app.segmenter import MODEL_SUFFIX, Segmenter
from benchmarks import tables
from benchmarks.processes import SHAPE, SPACING_MM, phantom_scan, run_fresh
from benchmarks.provenance import provenance
from benchmarks.start_up import stages
from evaluation.overlap import dice

BATCHES = (1, 2, 4, 8, 16)
REPEATS = 20
MATRIX_SIDE = 8192
# What a process costs otherwise: the words that start the program, and its options.
PROGRAM = ["-m", "app"]
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "as shipped": (PROGRAM, []),
    "1 slice per batch": (PROGRAM, ["--batch-size", "1"]),
    "8 slices per batch": (PROGRAM, ["--batch-size", "8"]),
    "whole slices, so that all batches have one shape": (["-m", "benchmarks.whole_slices"], []),
}


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean seconds of a call, after two to warm up."""
    for _ in range(2):
        call()
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait_for(device)
    return (time.perf_counter() - begin) / repeats


def graph_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float | None:
    """The same, captured as a CUDA graph, whose kernels are launched at once; None on a CPU."""
    if device.type != "cuda":
        return None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return seconds_of(graph.replay, device, repeats)


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """The GPU allocator's peaks since they were reset, in MiB."""
    on_gpu = device.type == "cuda"
    return {
        "allocated_mib": torch.cuda.max_memory_allocated(device) / MIB if on_gpu else None,
        "reserved_mib": torch.cuda.max_memory_reserved(device) / MIB if on_gpu else None,
    }


def matrix_peak_tflops(device: torch.device, dtype: torch.dtype, side: int = MATRIX_SIDE) -> float:
    """What the device reaches in a product of two large square matrices: the roof for any network."""
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, REPEATS) / 1e12


@torch.inference_mode()
def steady_state(model: Model, grid: tuple[int, int], batches: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Slices per second, TFLOP/s and the allocator's peak, for each batch size."""
    rows = []
    for batch in batches:
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(model.device)
        image = torch.rand(batch, model.config.channels_in, *grid, device=model.device).to(model.dtype)
        image = image.contiguous(memory_format=torch.channels_last)
        call = partial(model.network, image)
        seconds = seconds_of(call, model.device, repeats)
        memory = peak_memory(model.device)
        with FlopCounterMode(display=False) as counter:
            model.network(image)
        graph = graph_seconds(call, model.device, repeats)
        rows.append(
            {
                "batch": batch,
                "slices_per_second": batch / seconds,
                "slices_per_second_graph": graph and batch / graph,
                "tflops": counter.get_total_flops() / seconds / 1e12,
            }
            | memory
        )
    return rows


def load(name: str, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """A bundled model, or one of a weights file, in its usual precision or in another."""
    return load_onto(load_checkpoint(pathlib.Path(name) if is_file(name) else find_model(name)), device, dtype)


def is_file(name: str) -> bool:
    """Whether this is a weights file, not a bundled model's name."""
    return name.endswith(MODEL_SUFFIX)


def fresh_process(
    name: str, scan: pathlib.Path, device: str, uuid: str | None, variant: str = "as shipped"
) -> dict[str, Any]:
    """A process from start to exit: wall seconds, its log's stages, and the card's memory by the organisers' rule."""
    program, options = VARIANTS[variant]
    chosen = ["--device", device, "--weights" if is_file(name) else "--model", name, *options]
    with tempfile.TemporaryDirectory() as folder, nvml_reader(uuid) as read_used_mib:
        with MemorySampler(read_used_mib) as sampler:
            cost = run_fresh([*program, str(scan), folder, *chosen])
        record = json.loads((pathlib.Path(folder) / "run_log.jsonl").read_text())
    return {
        "seconds": cost.seconds,
        "stages_s": record["seconds"],
        "host_peak_mib": cost.peak_mib,
        "gpu_flare2021_mib": peak_flare2021(sampler.samples_mib),
        "gpu_maximum_mib": max(sampler.samples_mib, default=None),
        "gpu_torch_mib": record["gpu_peak_mib"]["torch"],
        "batch_size": record["batch_size"],
        "network_slices": record["network_slices"],
    }


def precision(name: str, scan: pathlib.Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """How far the labels in 16 bits are from those in float32: share of differing voxels, DSC per organ."""
    masks = []
    for kind in (torch.float32, dtype):
        masks.append(Segmenter(TorchEngine(load(name, device, kind), {})).segment(scan))
    single, half = masks
    agreement = {organ.key: dice(single == organ, half == organ) for organ in ORGANS}
    return {"differing_share": float(np.mean(single != half)), **agreement}


def processes(name: str, scan: pathlib.Path, uuid: str, rounds: int) -> dict[str, Any]:
    """One model in fresh processes; to be measured while this process holds no memory of the card."""
    return {
        "fresh_process": {
            variant: [fresh_process(name, scan, "cuda", uuid, variant) for _ in range(rounds)] for variant in VARIANTS
        },
        "start_up_stages_s": stages(name, "cuda"),
    }


def network(name: str, scan: pathlib.Path) -> dict[str, Any]:
    """One model's network in this process: speed, memory, precision."""
    device = torch.device("cuda")
    model = load(name, device)
    grid = network_grid(SHAPE[:2], SPACING_MM[:2], model.config.spacing_mm)
    return {
        "grid": grid,
        "steady_state": steady_state(model, grid, BATCHES, REPEATS),
        "precision": precision(name, scan, device, torch.float16),
    }


def summary(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    parts = (tables.about, tables.gpu_processes, tables.gpu_network, tables.gpu_precision)
    return "\n\n".join(part(found) for part in parts) + "\n"


def main() -> None:
    """Measure both models; gpu.json and gpu.md go to OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--scan", type=pathlib.Path, help="A real CT for the agreement of fp16; default: the phantom.")
    parser.add_argument("--rounds", type=int, default=3, help="Fresh processes of each kind, ten seconds each.")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("cache/bench"), help="For test volumes.")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "no usable NVIDIA GPU; `python -m benchmarks OUT` measures a CPU\n")
    args.out.mkdir(parents=True, exist_ok=True)
    scan, card = phantom_scan(args.scratch), torch.cuda.get_device_properties(0)
    uuid, names = str(card.uuid), ("fast", "paper")
    with nvml_reader(uuid) as read_used_mib:
        idle_mib = read_used_mib() if read_used_mib else None
    alone = {name: processes(name, scan, uuid, args.rounds) for name in names}
    found: dict[str, Any] = {
        **provenance(names),
        "device": card.name,
        "torch": torch.__version__,
        "gpu_idle_mib": idle_mib,
        "models": {name: alone[name] | network(name, args.scan or scan) for name in names},
        "matrix_peak_tflops": matrix_peak_tflops(torch.device("cuda"), torch.float16),
    }
    (args.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "gpu.md").write_text(summary(found))
    print(summary(found))


if __name__ == "__main__":
    main()
