"""OpenVINO: the network on a CPU, without torch. The graph is made from the checkpoint's own tensors."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, folded
from ..errors import DeviceError
from ..host import available_memory, has_fast_bfloat16, thread_count
from .batching import activation_bytes, in_batches, memory_errors, require_memory
from .engine import Array, Box, EngineInfo
from .numpy_images import prepared, to_labels
from .openvino_graph import network_graph

CPU = "CPU"
# By default one slice at a time. More took as much CPU time per slice, and each size of a batch is one more shape: the
# first time, the graph takes 35 ms to adapt to it (`fast`, EPYC of the third generation).
BATCH = 1
BYTES = {"float32": 4, "bfloat16": 2}
HINTS = {"float32": "f32", "bfloat16": "bf16"}


def best_precision(core: ov.Core) -> str:
    """`bfloat16` or `float32`, whichever is faster on this CPU, known from its instructions; see `has_fast_bfloat16`.

    Not timed at run time, because labels must not depend on how busy a machine is.
    """
    can = "BF16" in core.get_property(CPU, "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if can and has_fast_bfloat16() else "float32"


def compile_network(checkpoint: Checkpoint, precision: str) -> ov.CompiledModel:
    """Compile a checkpoint's network for any number, height and width of images.

    Args:
        checkpoint: the model.
        precision: `float32` or `bfloat16`.
    """
    core = ov.Core()
    graph = network_graph(folded(checkpoint.tensors), checkpoint.config.channels_in)
    return core.compile_model(
        graph,
        CPU,
        {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": thread_count(),
            "NUM_STREAMS": 1,  # all threads work on one batch
            "ENABLE_CPU_PINNING": False,  # pinned, two processes would wait for the same CPU while another idles
        },
    )


class OpenvinoSession:
    """A model's network for the slices of one scan; see `Session`. Arrays are NumPy's, float32.

    Args:
        engine: the model.
        grid: height and width on which it sees a slice.
        batch_size: slices per batch; None: one. Halved when memory runs out.

    Raises:
        NoMemoryError: not even one slice fits into memory.
    """

    def __init__(self, engine: OpenvinoEngine, grid: tuple[int, int], batch_size: int | None = None) -> None:
        self.config, self.grid, self.batch_size = engine.config, grid, batch_size or BATCH
        require_memory(activation_bytes(engine.config, grid, BYTES[engine.precision]), available_memory(), "cpu", grid)
        self._request = engine.compiled.create_infer_request()

    def prepare(self, hounsfield: NDArray[np.int16]) -> Array:
        """See `Session.prepare`."""
        return prepared(hounsfield, self.config.window_hu, self.grid)

    def logits(self, images: Sequence[Sequence[Array]], box: Box) -> Iterator[Array]:
        """See `Session.logits`."""

        def compute(batch: Sequence[Sequence[Array]]) -> Sequence[Array]:
            with memory_errors("cpu", [part.stop - part.start for part in box]):
                inputs = np.stack([np.stack([channel[box] for channel in image]) for image in batch])
                return list(self._request.infer([inputs], share_inputs=True).to_tuple()[0])

        return in_batches(self, images, compute)

    def zeros(self, shape: Sequence[int]) -> Array:
        """See `Session.zeros`."""
        return np.zeros(tuple(shape), np.float32)

    def labels(self, logits: Array, shape_yx: Sequence[int]) -> NDArray[np.uint8]:
        """See `Session.labels`."""
        return to_labels(logits, shape_yx)

    def to_numpy(self, array: Array) -> NDArray[np.float32]:
        """See `Session.to_numpy`."""
        plain: NDArray[np.float32] = array
        return plain


class OpenvinoEngine:
    """A model in OpenVINO; see `Engine`. It is compiled in a thread of its own, while the first scan is read.

    Args:
        checkpoint: the model.
        precision: `float32` or `bfloat16`; None: `best_precision`.
    """

    def __init__(self, checkpoint: Checkpoint, precision: str | None = None) -> None:
        self.config = checkpoint.config
        self.sha256: Mapping[str, str] = checkpoint.sha256
        self.precision = precision or best_precision(ov.Core())
        executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiled: Future[ov.CompiledModel] = executor.submit(compile_network, checkpoint, self.precision)
        executor.shutdown(wait=False)

    @classmethod
    def find_device(cls, wanted: str) -> str:
        """See `Engine.find_device`."""
        if wanted == "cuda":
            raise DeviceError("engine openvino computes on the CPU; choose engine torch, or device cpu")
        return "cpu"

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str) -> OpenvinoEngine:
        """See `Engine.load`."""
        return cls(checkpoint)

    @property
    def compiled(self) -> ov.CompiledModel:
        """The compiled network; waits until it is."""
        return self._compiled.result()

    def about(self) -> EngineInfo:
        """See `Engine.about`."""
        return EngineInfo(
            device="cpu",
            device_name=f"CPU ({platform.machine()})",
            precision=self.precision,
            versions={"openvino": ov.get_version().split("-")[0]},
        )

    @contextlib.contextmanager
    def session(self, grid: tuple[int, int], batch_size: int | None = None) -> Iterator[OpenvinoSession]:
        """See `Engine.session`."""
        with memory_errors("cpu", grid):
            yield OpenvinoSession(self, grid, batch_size)

    def peak_mib(self, reset: bool = False) -> int | None:
        """See `Engine.peak_mib`; nothing is counted beside the process's memory."""
        return None
