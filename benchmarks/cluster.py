"""python -m benchmarks.cluster OUT: Ray against plain shards, the driver's memory, and what 100,000 scans would cost.

Two workers of one thread each, small phantoms. The simulation draws how long scans take, `--seconds` on average (of one
real scan on one core, see docs/BENCHMARKS.md), and when machines fail.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks.processes import ROOT, run_fresh
from evaluation.tables import table
from phantom import write_phantom

SCANS = 40
STUBS = (100, 1000, 10_000)
HOUR = 3600.0
SPREAD = 0.6  # sigma of the lognormal times of scans: from a few dozen slices to a thousand
RESTART_SECONDS = 300.0  # until a machine that failed is replaced
DRIVER = """
import pathlib, sys
from benchmarks.stubs import run_stubs
run_stubs(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def ray_against_shards(folder: pathlib.Path) -> tuple[float, float, float]:
    """Wall seconds of two plain shards at once and of Ray with two workers, and a worker's peak memory in MiB."""
    source = folder / "scans"
    if not source.exists():
        for i in range(SCANS):
            write_phantom(source / f"p{i:03d}_0000.nii.gz", None, (256, 256, 40), (1.6, 1.6, 6.0), seed=i)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seconds = []
    for words in (["-m", "app"], ["-m", "cluster", "--workers", "2"]):
        output = folder / "masks"
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, *words, str(source), str(output), "--device", "cpu", "--model", "fast"]
        runs = [[*command, "--shard", f"{i}/2"] for i in (1, 2)] if words[1] == "app" else [command]
        begin = time.monotonic()
        for process in [subprocess.Popen(run, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) for run in runs]:
            process.wait()
        seconds.append(time.monotonic() - begin)
        assert len(list(output.glob("*.nii.gz"))) == SCANS
    records = [json.loads(line) for line in (folder / "masks" / "run_log.jsonl").read_text().splitlines()]
    return seconds[0], seconds[1], max(record["host_peak_rss_mib"] for record in records)


def driver_memory(folder: pathlib.Path) -> dict[int, float]:
    """The driver's peak memory in MiB by number of scans, none of which takes any work."""
    return {count: run_fresh(["-c", DRIVER, str(count), str(folder / f"stubs{count}")]).peak_mib for count in STUBS}


@dataclass(frozen=True)
class Cost:
    """What a simulated run took: hours until its end, machine-hours paid, and the share of them that was lost."""

    hours: float
    machine_hours: float
    lost_share: float


def simulate(scans: int, machines: int, seconds: float, failures_per_hour: float, is_shared: bool) -> Cost:
    """Play a run through.

    Args:
        scans: how many.
        machines: that work at once, one scan each at a time.
        seconds: a scan takes on average.
        failures_per_hour: of one machine; the scan it is at is lost, and it is back after a while.
        is_shared: a driver hands out scans one by one; otherwise each machine has its fixed share.
    """
    rng = random.Random(0)
    scale = seconds / 2.718281828 ** (SPREAD**2 / 2)
    times = [rng.lognormvariate(0, SPREAD) * scale for _ in range(scans)]
    queues = [times[i::machines] for i in range(machines)]
    lost = end = 0.0
    clock = [(0.0, i) for i in range(machines)]
    while clock:
        now, machine = heapq.heappop(clock)
        queue = times if is_shared else queues[machine]
        if not queue:
            continue
        need = queue.pop()
        fails_after = rng.expovariate(failures_per_hour / HOUR) if failures_per_hour else float("inf")
        if fails_after < need:
            lost += fails_after
            queue.append(need)
            heapq.heappush(clock, (now + fails_after + RESTART_SECONDS, machine))
        else:
            end = max(end, now + need)
            heapq.heappush(clock, (now + need, machine))
    return Cost(end / HOUR, machines * end / HOUR, lost / (seconds * scans + lost))


def main() -> None:
    """Print tables; driver_memory.png goes to OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("cache/bench/cluster"))
    parser.add_argument("--seconds", type=float, default=10.0, help="Of one scan on one core.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shards, over_ray, peak = ray_against_shards(args.scratch)
    per_hour = SCANS / 2 / shards * HOUR
    print(f"{SCANS} scans of 256 x 256 x 40, two workers: two shards {shards:.1f} s, Ray {over_ray:.1f} s, ratio")
    print(f"{over_ray / shards:.2f}; {per_hour:.0f} scans per hour and core; {peak:.0f} MiB per worker\n")
    memory = driver_memory(args.scratch)
    rows = [[count, f"{peak:.0f}"] for count, peak in memory.items()]
    print(table(["scans without work", "driver's peak memory, MiB"], rows))
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(memory), list(memory.values()), marker="o")
    axes.set(xscale="log", xlabel="scans", ylabel="driver's peak memory, MiB", ylim=(0, 1.3 * max(memory.values())))
    figure.savefig(args.out / "driver_memory.png", dpi=100)
    print(f"\n100,000 scans of {args.seconds:.0f} s on one core each:\n")
    rows = []
    for machines in (100, 1000, 21_000):
        for per_day in (0, 1, 24):
            for is_shared in (False, True):
                cost = simulate(100_000, machines, args.seconds, per_day / 24, is_shared)
                how = "one by one" if is_shared else "in shards"
                share = f"{100 * cost.lost_share:.2f} %"
                rows.append([machines, per_day, how, f"{cost.hours:.2f}", f"{cost.machine_hours:.0f}", share])
    print(table(["machines", "failures per machine and day", "handed out", "hours", "core-hours", "lost"], rows))


if __name__ == "__main__":
    main()
