"""The small trials behind choices of the CPU path, of `fast` at one body's size: python -m benchmarks.trials."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from app.checkpoint import Checkpoint, find_model, load_checkpoint
from app.engines.openvino_engine import CPU, best_precision, compile_network, stream_count
from app.engines.torch_engine import load_onto
from app.engines.torch_images import to_scan

SIDE = (192, 256)
REPEATS = 5


def milliseconds(call: Callable[[], object], share: int = 1) -> float:
    """The fastest of five calls after one to warm up, divided by `share`."""
    call()
    taken = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return 1000 * min(taken) / share


@torch.inference_mode()
def main() -> None:
    """Print a line for each trial."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, network input {SIDE[0]} x {SIDE[1]}")
    checkpoint = load_checkpoint(find_model("fast"))
    model = load_onto(checkpoint, torch.device("cpu"), torch.float32)
    channels = model.config.channels_in
    for batch in (1, 4, 8):
        image = torch.rand(batch, channels, *SIDE).contiguous(memory_format=torch.channels_last)
        taken = milliseconds(partial(model.network, image), batch)
        print(f"channels last, batches of {batch}: {taken:.1f} ms per slice")
    with FlopCounterMode(display=False) as counter:
        model.network(image)
    giga = counter.get_total_flops() / 1e9 / len(image)
    print(f"{giga:.1f} GFLOP per slice, {1000 * giga / taken:.0f} GFLOP/s")
    half = load_onto(checkpoint, torch.device("cpu"), torch.bfloat16).network
    image = torch.rand(4, channels, *SIDE).to(torch.bfloat16, memory_format=torch.channels_last)
    print(f"bfloat16, batches of 4: {milliseconds(lambda: half(image), 4):.1f} ms per slice")
    logits = to_scan(torch.randn(1, 5, 72, 72), (512, 512))
    print(f"argmax of 5 x 512 x 512: {milliseconds(lambda: logits.argmax(1)):.1f} ms")
    print(f"the same by max's index: {milliseconds(lambda: logits.max(1)[1]):.1f} ms")
    inputs = torch.rand(16, 1, 288, 288)
    for stride in (1, 4):
        taken = milliseconds(partial(functional.avg_pool2d, inputs, 11, stride, 5), 16)
        print(f"the wall's box, smoothing at every {stride}. pixel: {taken:.1f} ms per slice")
    plain = model.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    image = torch.rand(4, channels, *SIDE)
    print(f"channels first, batches of 4: {milliseconds(lambda: plain(image), 4):.1f} ms per slice")
    openvino(checkpoint, image.numpy())


def infer(queue: ov.AsyncInferQueue, parts: Sequence[NDArray[np.float32]]) -> None:
    """Run the network on each part, as many at the same time as the queue has requests."""
    for part in parts:
        queue.start_async([part])
    queue.wait_all()


def openvino(checkpoint: Checkpoint, images: NDArray[np.float32]) -> None:
    """OpenVINO, in the precision of this CPU: slices one by one or at the same time; compiled anew or read back."""
    core = ov.Core()
    precision = best_precision(core)
    for streams, batch in ((1, 1), (1, len(images)), (stream_count(), 1)):
        queue = ov.AsyncInferQueue(compile_network(checkpoint, precision, streams), streams)
        parts = np.split(images, len(images) // batch)
        taken = milliseconds(partial(infer, queue, parts * REPEATS), len(images) * REPEATS)
        print(f"OpenVINO {precision}, batches of {batch}, {streams} at the same time: {taken:.1f} ms per slice")
    blob = compile_network(checkpoint, precision).export_model().getvalue()
    anew = milliseconds(partial(compile_network, checkpoint, precision))
    back = milliseconds(lambda: core.import_model(io.BytesIO(blob), CPU))
    print(f"compiled anew: {anew:.0f} ms; read back from {len(blob) / 1e6:.0f} MB: {back:.0f} ms")


if __name__ == "__main__":
    main()
