"""OpenVINO: the network on a CPU, without torch. The graph is made from the checkpoint's own tensors."""

from __future__ import annotations

import contextlib
import os
import platform
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, folded
from ..errors import DeviceError, InferenceError, NoMemoryError
from ..host import available_memory, has_fast_bfloat16, thread_count
from .batching import activation_bytes, is_out_of_memory, memory_errors, require_memory
from .engine import Array, Box, EngineInfo
from .numpy_images import prepared, to_labels
from .openvino_graph import network_graph

CPU = "CPU"
# Slices that are computed at the same time, each by its share of the threads. On two AMX cores, two slices at once with
# one thread each take 75 % of the time of the same two in turn with two threads, and more memory: 35 MiB for `fast`, 90
# for `paper`. Batches were no faster, and the graph would have to adapt to every new batch size.
MAX_STREAMS = 4
BYTES = {"float32": 4, "bfloat16": 2}
HINTS = {"float32": "f32", "bfloat16": "bf16"}


def best_precision(core: ov.Core) -> str:
    """`bfloat16` or `float32`, whichever is faster on this CPU, known from its instructions; see `has_fast_bfloat16`.

    Not timed at run time, because labels must not depend on how busy a machine is.
    """
    can = "BF16" in core.get_property(CPU, "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if can and has_fast_bfloat16() else "float32"


def stream_count() -> int:
    """How many slices are computed at the same time."""
    return min(thread_count(), MAX_STREAMS)


def compile_network(checkpoint: Checkpoint, precision: str, streams: int | None = None) -> ov.CompiledModel:
    """Compile a checkpoint's network for any number, height and width of images.

    Args:
        checkpoint: the model.
        precision: `float32` or `bfloat16`.
        streams: how many requests are computed at the same time; None: `stream_count`.
    """
    core = ov.Core()
    graph = network_graph(folded(checkpoint.tensors), checkpoint.config.channels_in)
    return core.compile_model(
        graph,
        CPU,
        {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": thread_count(),
            "NUM_STREAMS": streams or stream_count(),
            "ENABLE_CPU_PINNING": False,  # pinned, two processes would wait for the same CPU while another idles
        },
    )


class OpenvinoSession:
    """A model's network for the slices of one scan; see `Session`. Arrays are NumPy's, float32.

    Args:
        engine: the model.
        grid: height and width on which it sees a slice.
        batch_size: slices on their way through the network at a time; None: one per stream, and one that waits for
            its turn while labels are made. Halved when memory runs out.

    Raises:
        NoMemoryError: not even one slice fits into memory.
    """

    def __init__(self, engine: OpenvinoEngine, grid: tuple[int, int], batch_size: int | None = None) -> None:
        self.config, self.grid = engine.config, grid
        self.batch_size = batch_size or stream_count() + 1
        require_memory(activation_bytes(engine.config, grid, BYTES[engine.precision]), available_memory(), "cpu", grid)
        self._compiled = engine.compiled
        self._idle: list[ov.InferRequest] = []

    def prepare(self, hounsfield: NDArray[np.int16]) -> Array:
        """See `Session.prepare`."""
        return prepared(hounsfield, self.config.window_hu, self.grid)

    def logits(self, images: Sequence[Sequence[Array]], box: Box) -> Iterator[Array]:
        """See `Session.logits`."""
        # Not `in_batches`: an image starts when another is done, and those that are done when memory runs out stay.
        left = list(images)
        while left:
            try:
                for logits in self._in_flight(list(left), box):
                    del left[0]
                    yield logits
            except NoMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2

    def _in_flight(self, images: Sequence[Sequence[Array]], box: Box) -> Iterator[Array]:
        """The logits of each image, `batch_size` of them being computed at a time."""
        running: deque[tuple[ov.InferRequest, Array]] = deque()

        def finish() -> Array:
            request, _ = running.popleft()  # its input has lived until here
            self._idle.append(request)
            request.wait()
            return request.get_output_tensor().data[0].copy()

        try:
            with memory_errors("cpu", [part.stop - part.start for part in box]):
                for image in images:
                    if len(running) == self.batch_size:
                        yield finish()
                    inputs = np.stack([channel[box] for channel in image])[None]
                    request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
                    running.append((request, inputs))
                    request.start_async([inputs], share_inputs=True)
                while running:
                    yield finish()
        finally:
            for request, _ in running:
                with contextlib.suppress(RuntimeError):  # the first error is the one that counts
                    request.wait()

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

    It belongs to the process that loaded it. A fork of that has none of its threads, and would wait for them for ever.

    Args:
        checkpoint: the model.
        precision: `float32` or `bfloat16`; None: `best_precision`.
    """

    def __init__(self, checkpoint: Checkpoint, precision: str | None = None) -> None:
        self._process = os.getpid()
        self.config = checkpoint.config
        self.sha256: Mapping[str, str] = checkpoint.sha256
        self.precision = precision or best_precision(ov.Core())
        executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiled: Future[ov.CompiledModel] = executor.submit(compile_network, checkpoint, self.precision)
        executor.shutdown(wait=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model in OpenVINO cannot be copied or sent to another process; load it in each process")

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
        """The compiled network; waits until it is.

        Raises:
            InferenceError: it cannot be compiled.
        """
        try:
            return self._compiled.result()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[-1]
            raise InferenceError(
                f"OpenVINO cannot compile the network ({reason}); where the system forbids memory that can be both "
                "written and executed (MemoryDenyWriteExecute of systemd, execmem of SELinux), allow it"
            ) from error

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
        """See `Engine.session`.

        Raises:
            InferenceError: the model was loaded before a fork.
        """
        if os.getpid() != self._process:
            raise InferenceError(
                "the model was loaded before this process was forked, and OpenVINO's threads did not come along; "
                "load it in each process"
            )
        with memory_errors("cpu", grid):
            yield OpenvinoSession(self, grid, batch_size)

    def peak_mib(self, reset: bool = False) -> int | None:
        """See `Engine.peak_mib`; nothing is counted beside the process's memory."""
        return None
