"""The tables of the benchmarks' JSON files, as Markdown; for the benchmarks themselves and for the documents.

Each takes what `python -m benchmarks` or `python -m benchmarks.gpu` wrote. Nothing that takes long is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.organs import ORGANS
from evaluation.tables import table

Found = Mapping[str, Any]

PLAIN = {"read": "nibabel", "write": "nibabel", "read DICOM": "dcm2niix, then nibabel (which has this peak)"}
COLUMNS = ("what", "ours", "compared with", "times faster")


def about(found: Found) -> str:
    """One sentence: versions, date and machine."""
    weights = " and ".join(f"`{name}` {model['version']}" for name, model in found["weights"].items())
    machine = found["device"] if "device" in found else f"{found['machine']}, {found['threads']} threads"
    idle = f", {found['gpu_idle_mib']} MiB of it in use before" if found.get("gpu_idle_mib") is not None else ""
    libraries = found.get("libraries") or {"torch": found["torch"]}
    named = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return f"Version {found['version']} with {weights}, {found['date']};\n{machine}, {named}{idle}."


def speed(found: Found) -> str:
    """The figures of the README: whole process, network, reading, memory, beside the plain way's."""
    run, read = found["inference"], found["reading"]["read"]
    depths = [row for row in found["over_slices"] if row["slices"] in (300, 3000)]
    memory = " / ".join(f"{row['peak_mib']:.0f}" for row in depths)
    return table(
        ["", "this program", "the plain way", "times faster"],
        [
            [
                "512 x 512 x 100, `fast`, whole process",
                _cost(run["fast_seconds"], run["fast_peak_mib"], 1),
                _cost(run["plain_fast_seconds"], run["plain_fast_peak_mib"], 1),
                f"{run['speed_up_over_plain_fast']:.1f}",
            ],
            [
                "`paper`'s network, per slice",
                f"{run['paper_seconds_per_slice']:.2f} s",
                f"{run['plain_paper_seconds_per_slice']:.2f} s",
                f"{run['paper_speed_up_per_slice']:.1f}",
            ],
            [
                "reading 512 x 512 x 300",
                _cost(read["seconds"], read["peak_mib"], 2),
                _cost(read["plain_seconds"], read["plain_peak_mib"], 2),
                f"{read['speed_up']:.1f}",
            ],
            [f"peak memory with {' / '.join(str(row['slices']) for row in depths)} slices", f"{memory} MiB", "", ""],
        ],
    )


def install(found: Found) -> str:
    """What each way to install takes."""
    return table(
        ["command", "size", "time"],
        [[f"`{way}`", f"{row['mib']:.0f} MiB", f"{row['seconds']:.0f} s"] for way, row in found["ways"].items()],
    )


def processes(found: Found) -> str:
    """Start-up, reading and writing, whole processes, each against the plain way."""
    start, run = found["start_up"], found["inference"]
    rows = [
        [
            "start until the model is ready",
            f"{start['model_ready_s']:.2f} s",
            f"{start['floor']}: {start['floor_s']:.2f} s",
            f"{start['ratio']:.2f}",
        ],
        *reading_rows(found["reading"]),
        [
            "whole process, 512 x 512 x 100",
            _cost(run["fast_seconds"], run["fast_peak_mib"], 1),
            f"plain: {_cost(run['plain_fast_seconds'], run['plain_fast_peak_mib'], 1)}",
            f"{run['speed_up_over_plain_fast']:.1f}",
        ],
        [
            "",
            "",
            f"the paper's network, plain, extrapolated: {run['plain_paper_seconds_extrapolated']:.0f} s",
            f"{run['speed_up_over_plain_paper']:.1f}",
        ],
        [
            "the paper's network, per slice (none skipped)",
            f"{run['paper_seconds_per_slice']:.2f} s",
            f"plain: {run['plain_paper_seconds_per_slice']:.2f} s",
            f"{run['paper_speed_up_per_slice']:.1f}",
        ],
    ]
    return table(COLUMNS, rows)


def reading_rows(parts: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Rows under `COLUMNS`: each part of reading and writing, ours, the other's, and the ratio."""
    return [
        [
            f"{part}, 512 x 512 x 300",
            _cost(row["seconds"], row["peak_mib"], 2),
            f"{PLAIN[part]}: {_cost(row['plain_seconds'], row['plain_peak_mib'], 2)}",
            f"{row['speed_up']:.1f}",
        ]
        for part, row in parts.items()
    ]


def _cost(seconds: float, mib: float, digits: int) -> str:
    return f"{seconds:.{digits}f} s, {mib:.0f} MiB"


def start_up(found: Found) -> str:
    """Seconds of each stage of the start."""
    return table(["start-up", "seconds"], [[name, f"{s:.2f}"] for name, s in found["start_up"]["stages_s"].items()])


def levers(found: Found) -> str:
    """What each lever brings, and how far it changes the labels."""
    return lever_table(found["levers"])


def lever_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same, of the rows alone."""
    organs = [organ.key for organ in ORGANS if organ.key in rows[0]]
    return table(
        ["lever", "seconds", "network slices", *(f"DSC {organ}" for organ in organs)],
        [
            [row["lever"], f"{row['seconds']:.1f}", row["network_slices"], *(f"{row[organ]:.4f}" for organ in organs)]
            for row in rows
        ],
    )


def slices(found: Found) -> str:
    """Time and memory over the number of slices."""
    rows = [(row, "") for row in found["over_slices"]] + [(found["turned"], ", stored as the fastest axis")]
    return table(
        ["slices of 1 mm", "seconds", "peak MiB", "network slices", "network's share of the time"],
        [
            [f"{row['slices']}{note}", *_growth(row), row["network_slices"], f"{row['network_share']:.2f}"]
            for row, note in rows
        ],
    )


def cases(found: Found) -> str:
    """Time and memory over the number of cases."""
    return table(
        ["cases", "seconds", "peak MiB", "network's share of the time"],
        [[row["cases"], *_growth(row), f"{row['network_share']:.2f}"] for row in found["over_cases"]],
    )


def beside(found: Found) -> str:
    """Several runs at the same time, against one after the other."""
    return table(
        ["runs", "one after the other", "at the same time", "ratio"],
        [
            [f"{row['runs']}", f"{row['one_by_one_s']:.1f} s", f"{row['at_once_s']:.1f} s", f"{row['ratio']:.2f}"]
            for row in found["beside"]
        ],
    )


def _growth(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['seconds']:.1f}", f"{row['peak_mib']:.0f}"]


def gpu_network(found: Found) -> str:
    """Throughput and memory of the network alone, over the batch size; empty where a figure was not taken."""
    rows = []
    for name, model in found["models"].items():
        height, width = model["grid"]
        for row in model["steady_state"]:
            graph = row.get("slices_per_second_graph")
            rows.append(
                [
                    f"`{name}`, {height} x {width}",
                    row["batch"],
                    f"{row['slices_per_second']:.0f}",
                    "" if graph is None else f"{graph:.0f}",
                    f"{row['tflops']:.1f}",
                    f"{row['tflops'] / found['matrix_peak_tflops']:.0%}",
                    *("" if row[key] is None else f"{row[key]:.0f}" for key in ("allocated_mib", "reserved_mib")),
                ]
            )
    header = ["network", "batch", "slices/s", "as a CUDA graph", "TFLOP/s", "of the matrix peak"]
    return table([*header, "allocated MiB", "reserved MiB"], rows)


def gpu_processes(found: Found) -> str:
    """Whole processes on a GPU: seconds, of these start-up and network, and the card's memory."""
    rows = [
        [
            f"`{name}`",
            variant,
            f"{run['seconds']:.1f} s",
            *(f"{run['stages_s'][stage]:.1f} s" for stage in ("start_up", "network")),
            run["gpu_flare2021_mib"],
        ]
        for name, model in found["models"].items()
        for variant, runs in model["fresh_process"].items()
        for run in runs
    ]
    return table(["model", "run", "process", "start-up", "network", "GPU MiB (2021 rule)"], rows)


def gpu_precision(found: Found) -> str:
    """How far the labels in fp16 are from those in float32."""
    organs = [organ.key for organ in ORGANS if all(organ.key in one["precision"] for one in found["models"].values())]
    return table(
        ["model", "differing voxels per million", *(f"DSC {organ}" for organ in organs)],
        [
            [
                f"`{name}`",
                f"{1e6 * model['precision']['differing_share']:.1f}",
                *(f"{model['precision'][organ]:.4f}" for organ in organs),
            ]
            for name, model in found["models"].items()
        ],
    )
