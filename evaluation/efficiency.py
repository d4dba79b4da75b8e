"""Time and memory as the organisers measure them: a fresh container, or process, for every case.

Source of rules and columns: github.com/JunMa11/FLARE, FLARE21/Evaluation and FLARE24 (the code of 2023 on).
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import psutil

from app.gpu_memory import INTERVAL_S, MIB, nvml_reader, peak_flare2021
from app.volumes.nifti import CHANNEL, extension_of
from evaluation.names import case_name

SHOWN_LINES = 3  # of what a command that failed said last
ROOT = pathlib.Path(__file__).resolve().parent.parent


class EfficiencyError(Exception):
    """A case cannot be run; the message says why."""


@dataclass
class Samples:
    """What was sampled every 0.1 s while one case ran; the field names are those of the organisers' JSON.

    Attributes:
        gpu_memory: MiB in use on the whole card; empty without a GPU.
        cpu_list: percent of all cores' time: user, system, idle.
        RAM_list: MiB in use on the whole machine.
        time: seconds from before the container's start to its return.
    """

    gpu_memory: list[int] = field(default_factory=list)
    cpu_list: list[tuple[float, float, float]] = field(default_factory=list)
    RAM_list: list[float] = field(default_factory=list)
    time: float = 0.0


def measure(run: Callable[[], None], read_gpu_mib: Callable[[], int] | None) -> Samples:
    """Call `run`, sampling every 0.1 s until it returns."""
    samples = Samples()
    ended = threading.Event()

    def sample() -> None:
        before = psutil.cpu_times()
        while not ended.wait(INTERVAL_S):
            now = psutil.cpu_times()
            spent = [getattr(now, name) - getattr(before, name) for name in ("user", "system", "idle")]
            before = now
            user, system, idle = (100 * part / max(sum(spent), 1e-9) for part in spent)
            samples.cpu_list.append((user, system, idle))
            samples.RAM_list.append(psutil.virtual_memory().used / MIB)
            if read_gpu_mib is not None:
                samples.gpu_memory.append(read_gpu_mib())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    begin = time.monotonic()
    try:
        run()
    finally:
        samples.time = time.monotonic() - begin
        ended.set()
        thread.join()
    return samples


def command(inputs: pathlib.Path, outputs: pathlib.Path, image: str | None, gpu: int) -> list[str]:
    """The organisers' command line for an image, or predict.sh in a fresh process where `image` is None."""
    if image is None:
        return ["sh", str(ROOT / "predict.sh"), str(inputs), str(outputs)]
    volumes = ["-v", f"{inputs}/:/workspace/inputs/", "-v", f"{outputs}/:/workspace/outputs/"]
    docker = [os.environ.get("DOCKER", "docker"), "container", "run", f"--gpus=device={gpu}", "--name", image, "--rm"]
    return [*docker, *volumes, f"{image}:latest", "/bin/bash", "-c", "sh predict.sh"]


def run_case(scan: pathlib.Path, outputs: pathlib.Path, image: str | None, gpu: int) -> Samples:
    """Run one case alone in an input folder of its own.

    Raises:
        EfficiencyError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder, nvml_reader(gpu) as read_gpu_mib:
        inputs = pathlib.Path(folder)
        inputs.chmod(0o755)
        shutil.copy(scan, inputs / scan.name)
        words = command(inputs, outputs.resolve(), image, gpu)

        def run() -> None:
            try:
                shown = subprocess.run(words, capture_output=True, text=True, check=False)
            except OSError as error:
                raise EfficiencyError(
                    f"{words[0]}: cannot be run ({error.strerror}); install it, or set DOCKER"
                ) from error
            if shown.returncode:
                said = "; ".join(shown.stderr.strip().splitlines()[-SHOWN_LINES:])
                raise EfficiencyError(f"{scan.name}: exit {shown.returncode}: {said}")

        return measure(run, read_gpu_mib)


def row_2021(name: str, samples: Samples) -> dict[str, object]:
    """The columns of 2021."""
    memory = samples.gpu_memory
    return {
        "name": name,
        "time": round(samples.time, 3),
        "gpu_memory": peak_flare2021(memory),
        "time_multiply_memory": round(sum(memory) * INTERVAL_S, 1) if memory else None,
    }


def row_2023(name: str, samples: Samples) -> dict[str, object]:
    """The columns of 2023."""
    memory, busy, ram = samples.gpu_memory, [100 - idle for _, _, idle in samples.cpu_list], samples.RAM_list
    return {
        "Name": f"{name}.nii.gz",
        "Time": round(samples.time, 2),
        "MaxGPU_Mem": max(memory) if memory else None,
        "AUC_GPU_Time": round(sum(memory) * INTERVAL_S) if memory else None,
        "MaxCPU_Utilization": round(max(busy, default=0.0), 2),
        "AUC_CPU_Time": round(sum(busy) * INTERVAL_S, 2),
        "MaxRAM": round(max(ram, default=0.0), 2),
        "AUC_RAM_Time": round(sum(ram) * INTERVAL_S),
    }


def write_rows(rows: Sequence[dict[str, object]], path: pathlib.Path) -> None:
    """Rows as CSV; an unknown value is `null`, never 0."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({key: "null" if value is None else value for key, value in row.items()} for row in rows)


def measure_folder(inputs: pathlib.Path, outputs: pathlib.Path, image: str | None, gpu: int) -> list[dict[str, object]]:
    """Run every scan of a folder alone, write the JSON and both years' CSV into `outputs`, return the rows of 2023.

    Raises:
        EfficiencyError: there is no scan, or some failed; the others are measured and in the CSV.
    """
    scans = sorted(path for path in inputs.iterdir() if extension_of(path))
    if not scans:
        raise EfficiencyError(f"{inputs}: no .nii.gz files")
    outputs.mkdir(parents=True, exist_ok=True)
    measured, problems = {}, []
    for scan in scans:
        name = case_name(scan.name.removesuffix(extension_of(scan) or "").removesuffix(CHANNEL))
        try:
            measured[name] = run_case(scan, outputs, image, gpu)
        except EfficiencyError as error:
            problems.append(str(error))
            continue
        (outputs / f"{name}.json").write_text(json.dumps(asdict(measured[name])) + "\n")
    rows = [row_2023(name, samples) for name, samples in measured.items()]
    if rows:
        write_rows([row_2021(name, samples) for name, samples in measured.items()], outputs / "efficiency_2021.csv")
        write_rows(rows, outputs / "efficiency_2023.csv")
    if problems:
        raise EfficiencyError("\nerror: ".join(dict.fromkeys(problems)))
    return rows
