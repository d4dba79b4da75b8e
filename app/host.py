"""What this process may use of its host, and what it has used: CPU time, memory, wall time since its start.

A container's limits come from cgroups of version 2 or 1. torch sees the host instead: it would start a thread for each
of the host's cores, however little CPU time the container has.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

CGROUP = pathlib.Path("/sys/fs/cgroup")  # in a container its own, as Docker and Kubernetes mount it
PROC = pathlib.Path("/proc")
OWN_CGROUPS = PROC / "self" / "cgroup"  # below it, as SLURM, systemd and Apptainer leave it
MEMINFO = PROC / "meminfo"
CPU_INFO = PROC / "cpuinfo"
THREADS = "OMP_NUM_THREADS"  # by which users and schedulers limit threads, whatever makes these


def allowed_cpus(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = OWN_CGROUPS) -> int | None:
    """CPU time of a container's or job's limit in CPUs, rounded up (`docker run --cpus`); None without a limit.

    Source: the Linux kernel's cgroup-v2 (cpu.max) and sched-bwc (cpu.cfs_quota_us, where -1 is no limit).
    """
    files = [[folder / "cpu.max"] for folder in _folders(cgroup, "", own)]
    version_1 = _folders(cgroup / "cpu", "cpu", own)
    files += [[folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"] for folder in version_1]
    limits = [numbers for several in files if (numbers := _numbers(several))]
    return min((math.ceil(quota / period) for quota, period in limits if quota > 0 and period > 0), default=None)


def usable_cpus() -> int:
    """CPUs that this process may use: of those that it may run on, or of its container's limit if that is less."""
    return min(len(os.sched_getaffinity(0)), allowed_cpus() or sys.maxsize)


def process_pool(count: int) -> ProcessPoolExecutor:
    """Processes for work that is shared out, which end with this one, however it ends.

    Otherwise they would wait for ever for more work of a parent that was killed. They are not forked: the child of a
    process with threads may wait for a lock that none of its own will free.

    Raises:
        OSError: they cannot be had, as without a writable /dev/shm or below a limit of processes.
    """
    from concurrent.futures import ProcessPoolExecutor  # most runs need none
    from multiprocessing import get_context

    return ProcessPoolExecutor(count, get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    from multiprocessing import parent_process

    if parent := parent_process():
        parent.join()
        os._exit(1)


def thread_count() -> int:
    """Threads for arithmetic: one per usable CPU, but no more than OMP_NUM_THREADS, where that is a number."""
    wanted = os.environ.get(THREADS, "").split(",")[0]
    return min(usable_cpus(), int(wanted) if wanted.isdecimal() and int(wanted) else sys.maxsize)


def has_fast_bfloat16() -> bool:
    """Whether this CPU computes a network faster in bfloat16 than in float32.

    CPU-milliseconds per slice, one thread; OpenVINO 2026.4 and torch 2.13 on an Intel CPU with AMX:

    | | torch float32 | torch bfloat16 | OpenVINO float32 | OpenVINO bfloat16 |
    |---|---|---|---|---|
    | width 18, 7 x 192 x 256 | 98 | 44 | 64 | 16 |
    | width 48, 3 x 384 x 448 | 1403 | 369 | 1190 | 195 |

    AMD's AVX-512 is nearly twice as fast in bfloat16, in torch (`python -m benchmarks.cpu_precision`) and in OpenVINO
    (whole scans on Zen 4: 0.6 of the CPU time with width 18, 0.5 with width 48). Intel's without AMX is slower in
    torch, and other CPUs emulate it.
    """
    about = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    return "amx_bf16" in about or ("AuthenticAMD" in about and "avx512_bf16" in about)


def allowed_memory(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = OWN_CGROUPS) -> int | None:
    """Bytes left of a container's or job's memory limit (`docker run --memory`, `sbatch --mem`); None without one.

    Cached files count as used.

    Source: the Linux kernel's cgroup-v2 (memory.max, memory.current) and cgroup-v1 (memory.limit_in_bytes).
    """
    files = [[folder / "memory.max", folder / "memory.current"] for folder in _folders(cgroup, "", own)]
    version_1 = _folders(cgroup / "memory", "memory", own)
    files += [[folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes"] for folder in version_1]
    limits = [numbers for several in files if (numbers := _numbers(several))]
    return min((max(0, limit - used) for limit, used in limits), default=None)


def available_memory() -> int:
    """Bytes that this process can still take: of the host's memory, or of its container's limit if that is less."""
    kib = _proc_number(MEMINFO, "MemAvailable:")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if kib is None else kib * 1024
    allowed = allowed_memory()
    return available if allowed is None else min(available, allowed)


def _folders(mount: pathlib.Path, controller: str, own: pathlib.Path) -> list[pathlib.Path]:
    """A hierarchy's folders whose limits hold for this process: its own, and those above it up to the mount.

    Args:
        mount: of the hierarchy.
        controller: that version 1 names in the list; none in version 2.
        own: /proc/self/cgroup, see cgroups(7). What it names is not there in a container that sees its own part alone.
    """
    try:
        rows = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        rows = []
    paths = [row[2] for row in rows if len(row) == 3 and controller in row[1].split(",")]
    parts = [part for part in paths[0].split("/") if part] if paths else []
    if ".." in parts:  # outside this process's namespace
        parts = []
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _numbers(files: list[pathlib.Path]) -> list[int] | None:
    """Two whole numbers; None where a file is missing or has another content, such as `max`."""
    try:
        first, second = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):
        return None
    return [first, second]


def _proc_number(file: pathlib.Path, name: str) -> int | None:
    """The number after a name in a file of /proc; None where the kernel, or what stands for one, does not tell."""
    try:
        return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))
    except (OSError, StopIteration, IndexError, ValueError):
        return None


def peak_rss_mib(pid: int | str = "self") -> float | None:
    """The largest resident memory of a process so far; None where the kernel does not tell (gVisor).

    Not ru_maxrss, which starts at the parent's size.
    """
    kib = _proc_number(PROC / str(pid) / "status", "VmHWM:")  # proc(5)
    return None if kib is None else round(kib / 1024, 1)


def seconds_since_process_start() -> float | None:
    """Wall time since the kernel started this process, to 0.01 s, imports included; None where it does not tell."""
    try:
        started_ticks = int((PROC / "self" / "stat").read_text().rsplit(")", 1)[1].split()[19])  # proc(5): field 22
        uptime = float((PROC / "uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None
    return max(0.0, uptime - started_ticks / os.sysconf("SC_CLK_TCK"))
