"""The streaming loop: slices -> window and grid -> batches -> network -> labels, in constant memory."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.checkpoint import Checkpoint, ModelConfig
from app.intensity import network_input, window
from app.network import fold_batch_norm
from app.slices import neighbour_step, network_grid, to_grid, to_scan, with_neighbours

OnSlice = Callable[[int], None]  # called with the number of slices done since the last call

MAX_BATCH = {"cuda": 8, "cpu": 4}  # larger ones cost memory and gain nothing
BODY_MM2 = 1000.0  # a slice with less than 10 cm2 above the window's low end holds no abdomen, not even a newborn's
BFLOAT16_WIDTH = 32  # an AMX tile's depth for bfloat16; see best_dtype
FREE_SHARE = 0.5  # of the free memory that a batch may be planned to take


class SegmentError(Exception):
    """The network cannot be run; the message says why and what to do."""


@dataclass(frozen=True)
class Model:
    """A folded network on its device, in the precision it runs with."""

    config: ModelConfig
    network: nn.Module
    device: torch.device
    dtype: torch.dtype


@dataclass
class Findings:
    """What the loop saw on its way.

    Attributes:
        network_slices: slices that went through the network; the others hold no body.
        lowest_hu: smallest value of the scan.
        highest_hu: largest value of the scan.
        batch_size: slices a batch, after what memory allowed.
        read_seconds: time spent waiting for slices.
        network_seconds: all other time.
    """

    network_slices: int = 0
    lowest_hu: int = np.iinfo(np.int16).max
    highest_hu: int = np.iinfo(np.int16).min
    batch_size: int = 0
    read_seconds: float = 0.0
    network_seconds: float = 0.0


def best_dtype(device: torch.device, width: int) -> torch.dtype:
    """fp16 on a GPU; on a CPU the faster of bfloat16 and float32, known from the width and the CPU's instructions.

    Not timed at run time, because labels must not depend on how busy a machine is. bfloat16 needs tiles (AMX) and
    channels that fill them: with the AVX-512 instructions alone it was slower than float32 at width 18 and at width 48
    (`python -m benchmarks.cpu_precision`).
    """
    if device.type == "cuda":
        return torch.float16
    cpu = pathlib.Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.exists() else ""
    return torch.bfloat16 if "amx_bf16" in flags and width >= BFLOAT16_WIDTH else torch.float32


def place(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """Fold the batch norms and move the network to the device; this is where the precision is decided."""
    dtype = dtype or best_dtype(device, checkpoint.config.width)
    network = fold_batch_norm(checkpoint.network())
    try:
        network = network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except torch.OutOfMemoryError as error:
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
    """Free bytes of the device's memory; on Linux the host's available memory for the CPU."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 30


def segment_slices(
    model: Model,
    slices: Iterable[tuple[int, NDArray[np.int16]]],
    spacing_zyx_mm: Sequence[float],
    labels: NDArray[np.uint8],
    batch_size: int | None = None,
    on_slice: OnSlice = lambda count: None,
) -> Findings:
    """Label every slice of a scan.

    Args:
        model: the network.
        slices: (z, slice), slice (Y, X) int16 HU, in ascending or descending order of z.
        spacing_zyx_mm: distance of slices, rows and columns.
        labels: (Z, Y, X), zeros; receives the labels 0..4. May be a view of any strides.
        batch_size: slices a batch; None chooses from the free memory.
        on_slice: called with the number of slices done since the last call.

    Raises:
        SegmentError: not even one slice fits into memory.
    """
    begin = time.perf_counter()
    depth, *shape_yx = labels.shape
    grid = network_grid(shape_yx, spacing_zyx_mm[1:], model.config.spacing_mm)
    findings = Findings(batch_size=batch_size or choose_batch_size(model, grid, free_memory(model.device)))
    step = neighbour_step(spacing_zyx_mm[0], model.config.neighbour_mm)
    enough_pixels = BODY_MM2 / (spacing_zyx_mm[1] * spacing_zyx_mm[2])

    def prepared() -> Iterator[tuple[int, tuple[Tensor, bool]]]:
        source = iter(slices)
        while True:
            asked = time.perf_counter()
            item = next(source, None)
            findings.read_seconds += time.perf_counter() - asked
            if item is None:
                return
            z, plane = item
            findings.lowest_hu = min(findings.lowest_hu, int(plane.min()))
            findings.highest_hu = max(findings.highest_hu, int(plane.max()))
            has_body = np.count_nonzero(plane > model.config.window_hu[0]) >= enough_pixels
            yield z, (_prepare(plane, model, grid), bool(has_body))

    batch: list[tuple[int, Tensor]] = []

    def flush() -> None:
        if batch:
            found = _label(model, torch.stack([image for _, image in batch]), shape_yx, findings)
            for (z, _), plane in zip(batch, found.cpu().numpy(), strict=True):
                labels[z] = plane
            findings.network_slices += len(batch)
            on_slice(len(batch))
            batch.clear()

    for z, rows in with_neighbours(prepared(), step, depth):
        if not rows[1][1]:
            on_slice(1)
            continue
        batch.append((z, torch.cat([plane for plane, _ in rows])))
        if len(batch) >= findings.batch_size:
            flush()
    flush()
    findings.network_seconds = time.perf_counter() - begin - findings.read_seconds
    return findings


def _prepare(plane: NDArray[np.int16], model: Model, grid: Sequence[int]) -> Tensor:
    """A slice (Y, X) HU -> (1, h, w) network input on the device; in float32 up to here, because HU are resampled."""
    hounsfield = torch.from_numpy(plane).to(model.device, non_blocking=True).float()
    windowed = window(hounsfield, *model.config.window_hu)
    return network_input(to_grid(windowed[None, None], grid))[0].to(model.dtype)


@torch.inference_mode()
def _label(model: Model, images: Tensor, shape_yx: Sequence[int], findings: Findings) -> Tensor:
    """Network inputs (N, 3, h, w) -> labels (N, Y, X) uint8; on a lack of memory in halves, down to single slices."""
    try:
        logits = model.network(images.contiguous(memory_format=torch.channels_last)).refined
        # float32: between two pixels logits differ by less than 16 bits can tell.
        return to_scan(logits.float(), shape_yx).argmax(1).to(torch.uint8)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    if len(images) == 1:
        raise SegmentError(
            f"{model.device}: not enough memory for a single slice of {shape_yx[0]} x {shape_yx[1]}; "
            "free memory, or use --model fast or --device cpu"
        )
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    half = (len(images) + 1) // 2
    findings.batch_size = min(findings.batch_size, half)
    return torch.cat([_label(model, part, shape_yx, findings) for part in torch.split(images, half)])


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class for a full GPU only; for the CPU it raises a RuntimeError with one of these texts."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error)
        for text in ("can't allocate memory", "could not create a memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )
