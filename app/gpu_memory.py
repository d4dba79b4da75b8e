"""Is there an NVIDIA GPU, and its peak memory as the organisers measure it: total minus free, sampled every 0.1 s."""

from __future__ import annotations

import contextlib
import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

MIB = 1 << 20
INTERVAL_S = 0.1
SHARE_FLARE2021 = 0.02
DEV = pathlib.Path("/dev")
# Of the NVIDIA driver, of its version for Jetson, and of GPUs under Windows Subsystem for Linux.
DEVICE_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvhost-ctrl-gpu", "dxg")


def has_gpu(devices: pathlib.Path = DEV) -> bool:
    """Whether there may be an NVIDIA GPU, judged by device files: asking torch would take seconds."""
    return any(next(devices.glob(pattern), None) for pattern in DEVICE_FILES)


def peak_flare2021(samples_mib: Sequence[int]) -> int | None:
    """FLARE2021's peak: the largest value that makes up more than 2 % of the samples; None without samples.

    Source: github.com/JunMa11/FLARE, Evaluation. Where every value is rarer than that, the plain maximum.
    """
    if not samples_mib:
        return None
    often = [mib for mib, n in Counter(samples_mib).items() if n > SHARE_FLARE2021 * len(samples_mib)]
    return max(often or samples_mib)


class MemorySampler:
    """Calls a reading function every 0.1 s in a thread, while used as a context.

    Args:
        read_used_mib: gives the memory in use, MiB; None where there is no GPU, and then there are no samples.
    """

    def __init__(self, read_used_mib: Callable[[], int] | None, interval_s: float = INTERVAL_S) -> None:
        self.samples_mib: list[int] = []
        self._read = read_used_mib
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-memory", daemon=True)

    def _run(self) -> None:
        while self._read is not None:
            self.samples_mib.append(self._read())
            if self._stop.wait(self._interval_s):
                return

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def nvml_reader(card: str | int | None) -> Iterator[Callable[[], int] | None]:
    """A function that reads the used memory (MiB) of a card, by UUID or index; None where NVML has no such card."""
    if card is None:
        yield None
        return
    import pynvml  # only a run on a GPU needs it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(card)
            if isinstance(card, int)
            else pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{card.removeprefix('GPU-')}")
        )

        def read_used_mib() -> int:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return int(memory.total - memory.free) // MIB

        read_used_mib()
    except pynvml.NVMLError:
        yield None
    else:
        yield read_used_mib
    finally:
        pynvml.nvmlShutdown()
