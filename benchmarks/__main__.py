"""python -m benchmarks OUT [--scan SCAN]: start-up, reading and writing, inference, memory, growth; JSON and a table.

Made for a machine without a GPU. What is compared runs in turn, in fresh processes; the table holds medians.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from app.host import thread_count
from benchmarks import tables
from benchmarks.beside import beside
from benchmarks.growth import one_scan, over_cases, over_slices, plot
from benchmarks.levers import levers
from benchmarks.processes import SHAPE, in_turn, long_scan, middle_scan, phantom_scan, turned_scan
from benchmarks.provenance import provenance
from benchmarks.reading import reading
from benchmarks.start_up import start_up
from evaluation.machine import processor

DEPTHS = (100, 300, 1000, 3000)
TURNED_DEPTH = 300
PAPER_SLICES = 4  # of the paper's plain network, which takes seconds for each


def inference(scan: pathlib.Path, folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Whole processes, ours and the plain way: `fast` on 512 x 512 x 100, the paper's network a slice."""
    masks = folder / "masks"
    masks.mkdir(exist_ok=True)
    few, more = middle_scan(folder, 1), middle_scan(folder, 1 + PAPER_SLICES)
    plain, ours = ["-m", "benchmarks.plain"], ["-m", "app"]
    commands = [[*ours, str(scan), str(masks), "--device", "cpu", "--model", "fast"]]
    commands += [[*plain, str(scan), str(masks / "plain.nii.gz"), "fast"]]
    for volume in (few, more):
        commands += [[*ours, str(volume), str(masks), "--device", "cpu", "--model", "paper"]]
        commands += [[*plain, str(volume), str(masks / "plain.nii.gz"), "paper"]]
    fast, plain_fast, few_ours, few_plain, more_ours, more_plain = in_turn(commands, rounds)
    ours_slice, plain_slice = (
        (b.seconds - a.seconds) / PAPER_SLICES for a, b in ((few_ours, more_ours), (few_plain, more_plain))
    )
    plain_paper = few_plain.seconds + (SHAPE[2] - 1) * plain_slice
    return {
        "fast_seconds": fast.seconds,
        "fast_peak_mib": fast.peak_mib,
        "plain_fast_seconds": plain_fast.seconds,
        "plain_fast_peak_mib": plain_fast.peak_mib,
        "speed_up_over_plain_fast": plain_fast.seconds / fast.seconds,
        "plain_paper_seconds_extrapolated": plain_paper,
        "speed_up_over_plain_paper": plain_paper / fast.seconds,
        "paper_seconds_per_slice": ours_slice,
        "plain_paper_seconds_per_slice": plain_slice,
        "paper_speed_up_per_slice": plain_slice / ours_slice,
    }


def summary(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    parts = (tables.about, tables.processes, tables.start_up, tables.levers, tables.slices, tables.cases, tables.beside)
    return "\n\n".join(part(found) for part in parts) + "\n"


def main() -> None:
    """Measure everything; bench.json, bench.md and growth.png go to OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--scan", type=pathlib.Path, help="For the levers' table, a real CT; default: the phantom.")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("cache/bench"), help="For test volumes.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    phantom = phantom_scan(args.scratch)
    found: dict[str, Any] = {
        **provenance(["fast", "paper"]),
        "machine": processor(),
        "threads": thread_count(),
        "start_up": start_up(middle_scan(args.scratch, 1), "fast", args.rounds),
        "reading": reading(long_scan(args.scratch, 300), args.scratch, args.rounds),
        "inference": inference(phantom, args.scratch, args.rounds),
        "levers": levers(args.scan or phantom, "fast"),
        "over_slices": over_slices(args.scratch, DEPTHS, "fast"),
        "turned": one_scan(turned_scan(args.scratch, TURNED_DEPTH), TURNED_DEPTH, "fast"),
        "over_cases": over_cases(args.scratch, "fast"),
        "beside": beside(phantom, "fast"),
    }
    (args.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found["over_slices"], found["over_cases"], args.out / "growth.png")
    text = summary(found)
    (args.out / "bench.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
