"""Batches that fit into memory, whatever the engine computes with."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ..checkpoint import ModelConfig
from ..errors import NoMemoryError
from ..strides import LOGITS_STRIDE
from .engine import Array, Session

LEAST_OF_ESTIMATE = 0.2  # of the estimated memory that a slice takes at least, see tests/test_budget.py
# How PyTorch, its CPU, CUDA, cuDNN, cuBLAS and OpenVINO say it, and C++.
OUT_OF_MEMORY = (
    "can't alloc",  # "can't allocate memory" too
    "could not create a memory",
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "bad_alloc",
)

Image = TypeVar("Image")


def activation_bytes(config: ModelConfig, grid: Sequence[int], value_bytes: int) -> int:
    """An upper estimate of the memory that one slice takes inside the network.

    Args:
        config: of the model.
        grid: height and width of the slice.
        value_bytes: bytes per value, as the network computes.
    """
    features = 15 * config.width
    per_logit_pixel = 4 * features + 6 * config.ocr_channels + 512
    return grid[0] * grid[1] // LOGITS_STRIDE**2 * per_logit_pixel * value_bytes


def require_memory(slice_bytes: int, free_bytes: int, device: str, grid: Sequence[int]) -> None:
    """Refuse a slice that does not fit. On a CPU there would be no error: the system would kill the process.

    Args:
        slice_bytes: by `activation_bytes`.
        free_bytes: of the device.
        device: for the message.
        grid: height and width of the slice.

    Raises:
        NoMemoryError: the slice does not fit.
    """
    if LEAST_OF_ESTIMATE * slice_bytes > free_bytes:
        raise no_memory(device, grid)


def in_batches(
    session: Session, images: Sequence[Image], compute: Callable[[Sequence[Image]], Iterable[Array]]
) -> Iterator[Array]:
    """What `compute` makes of each image, in batches of the session's size at most, halved when memory runs out.

    Args:
        session: of which the batch size is read and set.
        images: any.
        compute: a batch of images -> a result for each; raises `NoMemoryError`.

    Raises:
        NoMemoryError: not even one image fits into memory.
    """
    left = list(images)
    while left:
        # Even batches, since a small rest would cost more per slice.
        batch = left[: -(-len(left) // -(-len(left) // session.batch_size))]
        try:
            results = compute(batch)
        except NoMemoryError:
            if len(batch) == 1:
                raise
            session.batch_size = len(batch) // 2
            continue
        del left[: len(batch)]
        yield from results


@contextlib.contextmanager
def memory_errors(device: str, grid: Sequence[int], release: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Whatever runs out of memory inside becomes a `NoMemoryError`, and what it had allocated is free again.

    Args:
        device: for the message.
        grid: height and width of a slice, for the message.
        release: gives memory that is no longer used back to the device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their variables hold the arrays
        release()
        raise no_memory(device, grid) from error


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory ran out. Python has a class for it; libraries are known by a text."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def no_memory(device: str, grid: Sequence[int]) -> NoMemoryError:
    """The error for a slice of this height and width."""
    return NoMemoryError(
        f"{device}: not enough memory for a slice of {grid[0]} x {grid[1]}; "
        "free memory, or choose model fast or device cpu"
    )
