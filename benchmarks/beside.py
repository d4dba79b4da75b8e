"""Several runs on one machine at the same time, against one after the other: does one slow the others down?"""

from __future__ import annotations

import pathlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.processes import run_fresh

COUNTS = (2, 4)


def beside(scan: pathlib.Path, model: str) -> list[dict[str, float]]:
    """For each of `COUNTS`: seconds of so many runs of one scan, one after the other and at the same time."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for count in COUNTS:
            commands = [
                ["-m", "app", str(scan), str(pathlib.Path(name) / str(i)), "--device", "cpu", "--model", model]
                for i in range(count)
            ]
            one_by_one, at_once = (_seconds(commands, workers) for workers in (1, count))
            rows.append(
                {"runs": count, "one_by_one_s": one_by_one, "at_once_s": at_once, "ratio": at_once / one_by_one}
            )
    return rows


def _seconds(commands: list[list[str]], workers: int) -> float:
    begin = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run_fresh, commands))
    return time.monotonic() - begin
