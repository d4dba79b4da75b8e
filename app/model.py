"""A folded network on its device: its precision, the batches that memory allows, and its logits."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.checkpoint import Checkpoint, ModelConfig
from app.limits import allowed_cpus, allowed_memory
from app.network import fold_batch_norm

MAX_BATCH = {"cuda": 8, "cpu": 4}  # larger ones cost memory and gain nothing
CPU_INFO = pathlib.Path("/proc/cpuinfo")
AMX_WIDTH = 32  # a tile's depth for bfloat16
FREE_SHARE = 0.5  # of the free memory that a batch may be planned to take


class SegmentError(Exception):
    """The network cannot be run; the message says why and what to do."""


class NoMemoryError(SegmentError):
    """A batch does not fit into memory; a smaller one may."""


@dataclass(frozen=True)
class Model:
    """A folded network on its device, in the precision it runs with."""

    config: ModelConfig
    network: nn.Module
    device: torch.device
    dtype: torch.dtype


def best_dtype(device: torch.device, width: int) -> torch.dtype:
    """fp16 on a GPU; on a CPU the faster of bfloat16 and float32, known from the width and the CPU's instructions.

    Not timed at run time, because labels must not depend on how busy a machine is. Rests on
    `python -m benchmarks.cpu_precision`: AMD's AVX-512 units take bfloat16 nearly twice as fast; on Intel's, it was
    slower than float32 without tiles (AMX), which need channels that fill them; other CPUs emulate it.
    """
    if device.type == "cuda":
        return torch.float16
    about = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    is_fast = ("AuthenticAMD" in about and "avx512_bf16" in about) or ("amx_bf16" in about and width >= AMX_WIDTH)
    return torch.bfloat16 if is_fast else torch.float32


def place(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """Fold the checkpoint's network and move it to the device; this is where the precision is decided."""
    dtype = dtype or best_dtype(device, checkpoint.config.width)
    network = fold_batch_norm(checkpoint.network)
    try:
        network = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise SegmentError(f"{device}: no memory left for the weights; free the GPU or use --device cpu") from error
    return Model(checkpoint.config, network, device, dtype)


def activation_bytes(config: ModelConfig, grid: Sequence[int], dtype: torch.dtype) -> int:
    """An upper estimate of the memory that one slice takes inside the network."""
    features = 15 * config.width
    per_quarter_pixel = 4 * features + 6 * config.ocr_channels + 512
    return grid[0] * grid[1] // 16 * per_quarter_pixel * dtype.itemsize


def choose_batch_size(model: Model, grid: Sequence[int], free_bytes: int) -> int:
    """As many slices as half of the free memory holds by estimate, at least one, at most 8 (GPU) or 4 (CPU)."""
    fits = int(free_bytes * FREE_SHARE) // activation_bytes(model.config, grid, model.dtype)
    return min(MAX_BATCH[model.device.type], max(1, fits))


def free_memory(device: torch.device) -> int:
    """Free bytes of the device's memory; for the CPU those of the host, or of a container's limit."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    allowed = allowed_memory()
    return available if allowed is None else min(available, allowed)


def limit_threads() -> None:
    """Give this process no more threads than it has CPU time for; more of them wait for each other, spinning."""
    torch.set_num_threads(min(torch.get_num_threads(), allowed_cpus() or torch.get_num_threads()))


def refined_logits(model: Model, images: Tensor) -> Tensor:
    """Network inputs (N, 3, H, W) -> logits (N, 5, H / 4, W / 4), float32.

    Raises:
        NoMemoryError: the batch does not fit into memory.
    """
    try:
        logits: Tensor = model.network(images.contiguous(memory_format=torch.channels_last)).refined
        # float32: between two pixels logits differ by less than 16 bits can tell.
        return logits.float()
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    raise NoMemoryError(
        f"{model.device}: not enough memory for a slice of {images.shape[2]} x {images.shape[3]}; "
        "free memory, or use --model fast or --device cpu"
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a class for what its GPU allocator refuses; others (CPU, CUDA, cuDNN, cuBLAS) are known by a text."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error)
        for text in ("can't allocate memory", "could not create a memory", "out of memory", "STATUS_ALLOC_FAILED")
    )
