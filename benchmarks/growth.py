"""Time and memory as the work grows: slices of one scan, and scans of one run."""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.processes import Cost, long_scan, run_fresh, write_scan
from phantom import make_phantom

CASES, CASE_SHAPE, CASE_SPACING_MM = (1, 5, 20), (256, 256, 30), (1.5, 1.5, 9.0)


def _run(source: pathlib.Path, model: str) -> tuple[Cost, list[dict[str, Any]]]:
    """What a whole process on a scan or a folder costs, and its log."""
    with tempfile.TemporaryDirectory() as output:
        cost = run_fresh(["-m", "app", str(source), output, "--device", "cpu", "--model", model])
        return cost, [json.loads(line) for line in (pathlib.Path(output) / "run_log.jsonl").read_text().splitlines()]


def over_slices(folder: pathlib.Path, depths: tuple[int, ...], model: str) -> list[dict[str, Any]]:
    """Whole process on scans of 1 mm slices: seconds, peak memory, slices that the network saw."""
    return [one_scan(long_scan(folder, depth), depth, model) for depth in depths]


def one_scan(scan: pathlib.Path, depth: int, model: str) -> dict[str, Any]:
    """Whole process on one scan; a row of `over_slices`."""
    cost, (log,) = _run(scan, model)
    return {
        "slices": depth,
        "seconds": cost.seconds,
        "peak_mib": cost.peak_mib,
        "network_slices": log["network_slices"],
        "network_share": log["seconds"]["network"] / cost.seconds,
    }


def over_cases(folder: pathlib.Path, model: str) -> list[dict[str, Any]]:
    """Whole process on folders of small phantoms: seconds, peak memory, the network's share of the time."""
    rows = []
    for count in CASES:
        scans = folder / f"cases_{count}"
        for seed in range(count):
            path = scans / f"case_{seed}_0000.nii.gz"
            if not path.exists():
                image, _ = make_phantom(CASE_SHAPE, CASE_SPACING_MM, seed)
                write_scan(path, image, CASE_SPACING_MM, range(CASE_SHAPE[2]))
        cost, logs = _run(scans, model)
        network = sum(log["seconds"]["network"] for log in logs)
        rows.append(
            {
                "cases": count,
                "seconds": cost.seconds,
                "peak_mib": cost.peak_mib,
                "network_share": network / cost.seconds,
            }
        )
    return rows


def plot(slices: list[dict[str, Any]], cases: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Seconds and memory over slices, seconds over cases, as a PNG."""
    mpl.use("agg")
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, rows, across, up in (
        (axes[0], slices, "slices", "seconds"),
        (axes[1], slices, "slices", "peak_mib"),
        (axes[2], cases, "cases", "seconds"),
    ):
        axis.plot([row[across] for row in rows], [row[up] for row in rows], "o-")
        axis.set(xlabel=across, ylabel=up, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
