"""What a container may use of its host: CPU time and memory, as cgroups of version 2 or 1 limit them.

torch sees the host instead: it would start a thread for each of its cores, however little CPU time they share.
"""

from __future__ import annotations

import math
import pathlib

CGROUP = pathlib.Path("/sys/fs/cgroup")  # in a container its own, as Docker and Kubernetes mount it


def allowed_cpus(cgroup: pathlib.Path = CGROUP) -> int | None:
    """How many CPUs' time there is (`docker run --cpus`, a Kubernetes limit), rounded up; None without a limit.

    Source: the Linux kernel's cgroup-v2 (cpu.max) and sched-bwc (cpu.cfs_quota_us, where -1 is no limit).
    """
    version_1 = cgroup / "cpu"
    for files in ([cgroup / "cpu.max"], [version_1 / "cpu.cfs_quota_us", version_1 / "cpu.cfs_period_us"]):
        quota, period = _numbers(files) or (0, 1)
        if quota > 0:
            return math.ceil(quota / period)
    return None


def allowed_memory(cgroup: pathlib.Path = CGROUP) -> int | None:
    """Bytes that are left of a memory limit (`docker run --memory`); None without one. Cached files count as used.

    Source: the Linux kernel's cgroup-v2 (memory.max, memory.current) and cgroup-v1 (memory.limit_in_bytes).
    """
    version_1 = cgroup / "memory"
    for files in (
        [cgroup / "memory.max", cgroup / "memory.current"],
        [version_1 / "memory.limit_in_bytes", version_1 / "memory.usage_in_bytes"],
    ):
        if numbers := _numbers(files):
            limit, used = numbers
            return max(0, limit - used)
    return None


def _numbers(files: list[pathlib.Path]) -> list[int] | None:
    """Two whole numbers; None where a file is missing or has another content, such as `max`."""
    try:
        first, second = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):
        return None
    return [first, second]
