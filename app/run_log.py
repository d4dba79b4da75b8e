"""run_log.jsonl: one JSON line per case, in the output folder."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping

RUN_LOG = "run_log.jsonl"


def append(folder: pathlib.Path, record: Mapping[str, object]) -> None:
    """Append a record as one line, in one write, so that lines of several processes do not mix.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    descriptor = os.open(folder / RUN_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def peak_rss_mib() -> float:
    """The largest resident memory of this process so far; not ru_maxrss, which starts at the parent's size."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024, 1)  # KiB, proc(5)


def seconds_since_process_start() -> float:
    """Wall time since the kernel started this process, to 0.01 s; imports that came before us included."""
    started_ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])  # proc(5): field 22
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    return max(0.0, uptime - started_ticks / os.sysconf("SC_CLK_TCK"))
