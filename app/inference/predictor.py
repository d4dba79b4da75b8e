"""The network on its device: its precision, its inputs, and its logits in batches that fit into memory."""

from __future__ import annotations

import contextlib
import os
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint import Checkpoint, ModelConfig
from ..errors import DeviceError, NoMemoryError
from ..host import allowed_cpus, available_memory
from ..network import fold_batch_norm, load
from ..strides import LOGITS_STRIDE
from .preprocess import network_input, windowed_slice

MAX_BATCH = {"cuda": 8, "cpu": 4}  # larger ones cost memory and gain little
# What a batch may take of a GPU. 8 slices of `paper` instead of 2 took 1.7 GiB more on an H100 and were worth half a
# second per scan; see docs/BENCHMARKS.md.
GPU_BATCH_BYTES = 500 << 20
# By default cuBLAS set some 100 MiB more aside on an H100, for products of matrices that hardly occur here.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":16:8"
CPU_INFO = pathlib.Path("/proc/cpuinfo")
AMX_WIDTH = 32  # a tile's depth for bfloat16
LEAST_OF_ESTIMATE = 0.2  # of the estimated memory that a slice takes at least, see tests/test_budget.py
FREE_SHARE = 0.5  # of the free memory that a batch may be planned to take


class Predictor(Protocol):
    """The boundary between a scan's slices and the network: what stands behind it can be swapped.

    Attributes:
        config: what the network was trained to see.
        grid: height and width on which it sees a slice.
        batch_size: slices that go through it at a time, at most.
    """

    config: ModelConfig
    grid: tuple[int, int]
    batch_size: int

    def prepare(self, hounsfield: NDArray[np.int16]) -> Tensor:
        """A slice (Y, X) of HU -> (h, w), one channel of the network's input, 0..1, on the device."""
        ...

    def logits(self, images: Sequence[Tensor]) -> Iterator[Tensor]:
        """Network inputs (C, h, w), all of one size -> the logits of each, (5, h / 4, w / 4) float32, in order.

        Raises:
            NoMemoryError: not even one image fits into memory.
        """
        ...


@dataclass(frozen=True)
class Model:
    """A folded network on its device, in the precision it runs with."""

    config: ModelConfig
    network: nn.Module
    device: torch.device
    dtype: torch.dtype


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cuda` or `cpu` -> a device that works; `auto` is the CPU where there is no usable GPU.

    Raises:
        DeviceError: `cuda` was asked for and there is none.
    """
    usable = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise DeviceError(
            "device cuda: no usable NVIDIA GPU; start the container with access to one (docker run --gpus all), "
            "or choose device cpu"
        )
    return torch.device("cuda" if usable else "cpu")


def best_dtype(device: torch.device, width: int) -> torch.dtype:
    """fp16 on a GPU; on a CPU the faster of bfloat16 and float32, known from the width and the CPU's instructions.

    Not timed at run time, because labels must not depend on how busy a machine is. The rule rests on
    `python -m benchmarks.cpu_precision`: AMD's AVX-512 units take bfloat16 nearly twice as fast; on Intel's, it was
    slower than float32 without tiles (AMX), which need channels that fill them; other CPUs emulate it.
    """
    if device.type == "cuda":
        return torch.float16
    about = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    is_fast = ("AuthenticAMD" in about and "avx512_bf16" in about) or ("amx_bf16" in about and width >= AMX_WIDTH)
    return torch.bfloat16 if is_fast else torch.float32


def load_onto(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """Fold the checkpoint's network and load it onto the device; this is where the precision is decided.

    Raises:
        DeviceError: the device has no room for the weights.
    """
    os.environ.setdefault(*CUBLAS_WORKSPACE)  # read when cuBLAS is first used
    dtype = dtype or best_dtype(device, checkpoint.config.width)
    network = fold_batch_norm(load(checkpoint))
    try:
        network = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceError(f"{device}: no memory left for the weights; free the GPU or choose device cpu") from error
    return Model(checkpoint.config, network, device, dtype)


def activation_bytes(config: ModelConfig, grid: Sequence[int], dtype: torch.dtype) -> int:
    """An upper estimate of the memory that one slice takes inside the network."""
    features = 15 * config.width
    per_logit_pixel = 4 * features + 6 * config.ocr_channels + 512
    return grid[0] * grid[1] // LOGITS_STRIDE**2 * per_logit_pixel * dtype.itemsize


def choose_batch_size(model: Model, grid: Sequence[int], free_bytes: int) -> int:
    """As many slices as half of the free memory, or 500 MiB of a GPU, holds by estimate; 1 to 8 (GPU) or 4 (CPU)."""
    room = int(free_bytes * FREE_SHARE)
    if model.device.type == "cuda":
        room = min(room, GPU_BATCH_BYTES)
    fits = room // activation_bytes(model.config, grid, model.dtype)
    return min(MAX_BATCH[model.device.type], max(1, fits))


def free_memory(device: torch.device) -> int:
    """Free bytes of the device's memory; for the CPU those of the host, or of a container's limit."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return available_memory()


def limit_threads() -> None:
    """Give this process no more threads than it has CPU time for; more of them wait for each other, spinning."""
    torch.set_num_threads(min(torch.get_num_threads(), allowed_cpus() or torch.get_num_threads()))


class NetworkPredictor:
    """A model's network for the slices of one scan; see `Predictor`.

    Args:
        model: the network.
        grid: height and width on which it sees a slice.
        batch_size: slices per batch; None chooses from the free memory. Halved when memory runs out.

    Raises:
        NoMemoryError: not even one slice fits into memory.
    """

    def __init__(self, model: Model, grid: tuple[int, int], batch_size: int | None = None) -> None:
        self.model, self.config, self.grid = model, model.config, grid
        free_bytes = free_memory(model.device)
        if LEAST_OF_ESTIMATE * activation_bytes(model.config, grid, model.dtype) > free_bytes:
            raise no_memory(model.device, grid)  # a CPU would not refuse: the system would end the process
        self.batch_size = batch_size or choose_batch_size(model, grid, free_bytes)

    def prepare(self, hounsfield: NDArray[np.int16]) -> Tensor:
        """See `Predictor.prepare`."""
        plane = torch.from_numpy(hounsfield).to(self.model.device, non_blocking=True)
        return network_input(windowed_slice(plane, self.config.window_hu, self.grid)).to(self.model.dtype)

    def logits(self, images: Sequence[Tensor]) -> Iterator[Tensor]:
        """See `Predictor.logits`."""
        left = list(images)
        while left:
            # Even batches, since a small rest would cost more per slice.
            batch = left[: -(-len(left) // -(-len(left) // self.batch_size))]
            try:
                logits = refined_logits(self.model, batch)
            except NoMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2
                continue
            del left[: len(batch)]
            yield from logits


def refined_logits(model: Model, images: Sequence[Tensor]) -> Tensor:
    """Network inputs (C, H, W), all of one size -> logits (N, 5, H / 4, W / 4), float32.

    Raises:
        NoMemoryError: the batch does not fit into memory.
    """
    with memory_errors(model.device, images[0].shape[1:]):
        batch = torch.stack(list(images)).contiguous(memory_format=torch.channels_last)
        # float32: between two pixels logits differ by less than 16 bits can tell.
        logits: Tensor = model.network(batch).refined.float()
    return logits


@contextlib.contextmanager
def memory_errors(device: torch.device, grid: Sequence[int]) -> Iterator[None]:
    """Whatever runs out of memory inside becomes a `NoMemoryError`, and what it had allocated is free again."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their variables hold the tensors
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise no_memory(device, grid) from error


def no_memory(device: torch.device, grid: Sequence[int]) -> NoMemoryError:
    """The error for a slice of this height and width."""
    return NoMemoryError(
        f"{device}: not enough memory for a slice of {grid[0]} x {grid[1]}; "
        "free memory, or choose model fast or device cpu"
    )


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Python and PyTorch's GPU allocator have classes for it; others (CPU, CUDA, cuDNN, cuBLAS) are known by a text."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error)
        for text in ("can't allocate memory", "could not create a memory", "out of memory", "STATUS_ALLOC_FAILED")
    )
