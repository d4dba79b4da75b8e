"""Seconds per slice of the folded network on this CPU, float32 against bfloat16: python -m benchmarks.cpu_precision.

What `app.engines.torch_engine.best_dtype` rests on.
"""

from __future__ import annotations

import time

import torch

from app.network import HrnetOcr, fold_batch_norm

MODELS = {"fast": (18, 128, 64, 256, 4), "paper": (48, 512, 256, 512, 1)}  # width, OCR channels, keys, side, batch
REPEATS = 3


def seconds_per_slice(name: str, dtype: torch.dtype) -> float:
    """The fastest of three, after one to warm up."""
    width, channels, keys, side, batch = MODELS[name]
    network = fold_batch_norm(HrnetOcr(width, ocr_channels=channels, key_channels=keys))
    network = network.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(batch, 3, side, side).to(dtype, memory_format=torch.channels_last)
    taken = []
    with torch.inference_mode():
        for _ in range(1 + REPEATS):
            begin = time.perf_counter()
            network(image)
            taken.append(time.perf_counter() - begin)
    return min(taken[1:]) / batch


def main() -> None:
    """Print a line for each model."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, (width, *_, side, _) in MODELS.items():
        single, brain = (seconds_per_slice(name, dtype) for dtype in (torch.float32, torch.bfloat16))
        print(f"{name}: width {width}, {side} x {side}: float32 {single:.3f} s, bfloat16 {brain:.3f} s per slice")


if __name__ == "__main__":
    main()
