"""The boundary between the program and what computes: an engine holds a model, a session runs it for one scan.

What stands behind it can be swapped: torch on a GPU or a CPU, another runtime, a remote server. Arrays are the engine's
own; the program slices them and does arithmetic with them, as with NumPy's, and asks for NumPy only where it has to.

Shapes: C input channels, K labels of the model, h x w the grid on which the network sees a slice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, ModelConfig

Array = Any  # of the engine's own kind
Box = tuple[slice, slice]  # rows and columns of the grid, multiples of 32 in size


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What the log says of an engine.

    Attributes:
        device: `cuda` or `cpu`.
        device_name: for people.
        precision: of the network's arithmetic, such as `float16`.
        versions: of the libraries that compute, by name; None for one that was not used.
        gpu_uuid: of the GPU, as NVML knows it; None without one.
    """

    device: str
    device_name: str
    precision: str
    versions: Mapping[str, str | None]
    gpu_uuid: str | None = None


class Session(Protocol):
    """The network for the slices of one scan.

    Attributes:
        grid: h and w.
        batch_size: slices that go through the network at a time, at most.
    """

    grid: tuple[int, int]
    batch_size: int

    def prepare(self, hounsfield: NDArray[np.int16]) -> Array:
        """A slice (Y, X) of HU -> one channel of the network's input, (h, w), 0..1."""
        ...

    def logits(self, images: Sequence[Sequence[Array]], box: Box) -> Iterator[Array]:
        """The logits (K, box height / 4, box width / 4) of each image, in order.

        Args:
            images: the C channels of each, as `prepare` made them.
            box: the part of the grid that the network looks at.

        Raises:
            NoMemoryError: not even one image fits into memory.
        """
        ...

    def zeros(self, shape: Sequence[int]) -> Array:
        """An array of zeros that is like the logits."""
        ...

    def labels(self, logits: Array, shape_yx: Sequence[int]) -> NDArray[np.uint8]:
        """Logits (K, h / 4, w / 4) -> the channel that is likeliest at each of the scan's pixels, (Y, X)."""
        ...

    def to_numpy(self, array: Array) -> NDArray[np.float32]:
        """A copy or a view of an array."""
        ...


class Engine(Protocol):
    """A model, ready on its device.

    Attributes:
        config: the model's.
        sha256: of its weights file, by name.
    """

    config: ModelConfig
    sha256: Mapping[str, str]

    @classmethod
    def find_device(cls, wanted: str) -> str:
        """`auto`, `cuda` or `cpu` -> a device that works, `cuda` or `cpu`.

        Raises:
            DeviceError: what was asked for is not there.
        """
        ...

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str) -> Engine:
        """Load a model onto a device.

        Raises:
            DeviceError: the device has no room for it.
        """
        ...

    def about(self) -> EngineInfo:
        """What the log says of it."""
        ...

    def session(
        self, grid: tuple[int, int], batch_size: int | None = None
    ) -> contextlib.AbstractContextManager[Session]:
        """Run the network on this grid; whatever runs out of memory inside the block becomes a `NoMemoryError`.

        Args:
            grid: h and w, multiples of 32.
            batch_size: slices in the network at a time, halved when memory runs out; None: the engine chooses.

        Raises:
            NoMemoryError: there is not enough memory for a slice.
        """
        ...

    def peak_mib(self, reset: bool = False) -> int | None:
        """Peak memory of the device that the engine took since the last reset; None where it does not count it."""
        ...
