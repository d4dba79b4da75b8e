"""PyTorch: the network on a GPU in fp16, or on a CPU, in batches that fit into memory."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint import Checkpoint, ModelConfig
from ..errors import DeviceError
from ..gpu_memory import MIB
from ..host import available_memory, has_fast_bfloat16, thread_count
from ..network import fold_batch_norm, load
from .batching import activation_bytes, in_batches, is_out_of_memory, memory_errors, require_memory
from .engine import Array, Box, EngineInfo
from .torch_images import network_input, to_scan, windowed_slice

MAX_BATCH = {"cuda": 8, "cpu": 4}  # larger ones cost memory and gain little
# What a batch may take of a GPU. 8 slices of `paper` instead of 2 took 1.7 GiB more on an H100 and were worth half a
# second per scan; see docs/BENCHMARKS.md.
GPU_BATCH_BYTES = 500 << 20
# By default cuBLAS set some 100 MiB more aside on an H100, for products of matrices that hardly occur here.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":16:8"
PROCESS = os.getpid()  # that imported this
FREE_SHARE = 0.5  # of the free memory that a batch may be planned to take


@dataclass(frozen=True)
class Model:
    """A folded network on its device, in the precision it runs with."""

    config: ModelConfig
    network: nn.Module
    device: torch.device
    dtype: torch.dtype


def best_dtype(device: torch.device) -> torch.dtype:
    """fp16 on a GPU; on a CPU the faster of bfloat16 and float32, known from its instructions.

    Not timed at run time, because labels must not depend on how busy a machine is.
    """
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def load_onto(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """Fold the checkpoint's network and load it onto the device; this is where the precision is decided.

    Raises:
        DeviceError: the device has no room for the weights.
    """
    os.environ.setdefault(*CUBLAS_WORKSPACE)  # read when cuBLAS is first used
    dtype = dtype or best_dtype(device)
    network = fold_batch_norm(load(checkpoint))
    try:
        network = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"{device}: no memory left for the weights; free the GPU or choose device cpu") from error
    return Model(checkpoint.config, network, device, dtype)


def choose_batch_size(model: Model, grid: Sequence[int], free_bytes: int) -> int:
    """As many slices as half of the free memory, or 500 MiB of a GPU, holds by estimate; 1 to 8 (GPU) or 4 (CPU)."""
    room = int(free_bytes * FREE_SHARE)
    if model.device.type == "cuda":
        room = min(room, GPU_BATCH_BYTES)
    fits = room // activation_bytes(model.config, grid, model.dtype.itemsize)
    return min(MAX_BATCH[model.device.type], max(1, fits))


def free_memory(device: torch.device) -> int:
    """Free bytes of the device's memory; for the CPU those of the host, or of a container's limit."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return available_memory()


def limit_threads() -> None:
    """Give this process no more threads than it has CPU time for; more of them wait for each other.

    A fork gets one: it has none of its parent's OpenMP threads, and would wait for them for ever.
    """
    is_fork = os.getpid() != PROCESS
    torch.set_num_threads(1 if is_fork else min(torch.get_num_threads(), thread_count()))


class TorchSession:
    """A model's network for the slices of one scan; see `Session`.

    Args:
        model: the network.
        grid: height and width on which it sees a slice.
        batch_size: slices per batch; None chooses from the free memory. Halved when memory runs out.

    Raises:
        NoMemoryError: not even one slice fits into memory.
    """

    def __init__(self, model: Model, grid: tuple[int, int], batch_size: int | None = None) -> None:
        self.model, self.grid = model, grid
        free_bytes = free_memory(model.device)
        slice_bytes = activation_bytes(model.config, grid, model.dtype.itemsize)
        require_memory(slice_bytes, free_bytes, str(model.device), grid)
        self.batch_size = batch_size or choose_batch_size(model, grid, free_bytes)

    def prepare(self, hounsfield: NDArray[np.int16]) -> Array:
        """See `Session.prepare`."""
        plane = torch.from_numpy(hounsfield).to(self.model.device, non_blocking=True)
        return network_input(windowed_slice(plane, self.model.config.window_hu, self.grid)).to(self.model.dtype)

    def logits(self, images: Sequence[Sequence[Array]], box: Box) -> Iterator[Array]:
        """See `Session.logits`."""
        return in_batches(self, images, lambda batch: refined_logits(self.model, batch, box))

    def zeros(self, shape: Sequence[int]) -> Array:
        """See `Session.zeros`."""
        return torch.zeros(tuple(shape), device=self.model.device)

    def labels(self, logits: Array, shape_yx: Sequence[int]) -> NDArray[np.uint8]:
        """See `Session.labels`."""
        # The largest value's index, for argmax is many times slower on a CPU along this axis.
        labels: NDArray[np.uint8] = to_scan(logits[None], shape_yx).max(1)[1].byte()[0].cpu().numpy()
        return labels

    def to_numpy(self, array: Array) -> NDArray[np.float32]:
        """See `Session.to_numpy`."""
        copy: NDArray[np.float32] = array.float().cpu().numpy()  # NumPy knows no bfloat16
        return copy


class TorchEngine:
    """A model in torch; see `Engine`."""

    def __init__(self, model: Model, sha256: Mapping[str, str]) -> None:
        self.model, self.config, self.sha256 = model, model.config, sha256
        self.is_gpu = model.device.type == "cuda"

    @classmethod
    def find_device(cls, wanted: str) -> str:
        """See `Engine.find_device`."""
        usable = wanted != "cpu" and torch.cuda.is_available()
        if wanted == "cuda" and not usable:
            raise DeviceError(
                "device cuda: no usable NVIDIA GPU; start the container with access to one (docker run --gpus all), "
                "or choose device cpu"
            )
        return "cuda" if usable else "cpu"

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str) -> TorchEngine:
        """See `Engine.load`. On a CPU it takes no more threads than a container's limit allows."""
        limit_threads()
        return cls(load_onto(checkpoint, torch.device(device)), checkpoint.sha256)

    def about(self) -> EngineInfo:
        """See `Engine.about`."""
        device = self.model.device
        return EngineInfo(
            device=device.type,
            device_name=torch.cuda.get_device_name(device) if self.is_gpu else f"CPU ({platform.machine()})",
            precision=str(self.model.dtype).removeprefix("torch."),
            versions={"torch": torch.__version__, "cuda": torch.version.cuda if self.is_gpu else None},
            gpu_uuid=str(torch.cuda.get_device_properties(device).uuid) if self.is_gpu else None,
        )

    @contextlib.contextmanager
    def session(self, grid: tuple[int, int], batch_size: int | None = None) -> Iterator[TorchSession]:
        """See `Engine.session`."""
        limit_threads()
        with torch.inference_mode(), _memory_errors(self.model.device, grid):
            yield TorchSession(self.model, grid, batch_size)

    def peak_mib(self, reset: bool = False) -> int | None:
        """See `Engine.peak_mib`; what torch's allocator had reserved."""
        if not self.is_gpu:
            return None
        peak = round(torch.cuda.max_memory_reserved(self.model.device) / MIB)
        if reset:
            torch.cuda.reset_peak_memory_stats(self.model.device)
        return peak


def refined_logits(model: Model, images: Sequence[Sequence[Tensor]], box: Box) -> Tensor:
    """The channels (h, w) of each network input, cut to a box -> logits (N, K, height / 4, width / 4), float32.

    Raises:
        NoMemoryError: the batch does not fit into memory.
    """
    with _memory_errors(model.device, [part.stop - part.start for part in box]):
        batch = torch.stack([torch.stack([channel[box] for channel in image]) for image in images])
        batch = batch.contiguous(memory_format=torch.channels_last)
        # float32: between two pixels logits differ by less than 16 bits can tell.
        logits: Tensor = model.network(batch).refined.float()
    return logits


def _memory_errors(device: torch.device, grid: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    return memory_errors(str(device), grid, torch.cuda.empty_cache if device.type == "cuda" else lambda: None)
