"""From a process's start to its first batch, by stage, against the floor: the engine's library and the weights."""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
from typing import Any

from app.checkpoint import find_model
from benchmarks.processes import in_turn, run_fresh
from benchmarks.provenance import LIBRARIES

STAGES = """
import json, sys, time
from app.host import seconds_since_process_start
marks = {"python": seconds_since_process_start()}
def mark(stage, begin=[time.perf_counter()]):
    now = time.perf_counter()
    marks[stage], begin[0] = now - begin[0], now
from app.quick_imports import import_nibabel, without_collection
import_nibabel()
import app.cli
mark("click, numpy, nibabel, isal")
with without_collection():
    import app.run
    mark("the rest of the program")
    name, device, out = sys.argv[1:]
    from app.engines import choose_engine
    choose_engine("auto", device)
    mark("the engine's library")
    if device == "cuda":
        import torch
        torch.zeros(1, device=device)
        mark("CUDA start")
    from app.segmenter import Segmenter
    segmenter = Segmenter.load(name, device)
    if device == "cuda":
        torch.cuda.synchronize()
    mark("weights")
    if hasattr(segmenter.engine, "compiled"):
        segmenter.engine.compiled
        mark("network compiled, while the first scan is read")
open(out, "w").write(json.dumps(marks))
"""
FLOOR = "import pathlib, sys, {library}; [pathlib.Path(path).read_bytes() for path in sys.argv[1:]]"
IMPORTED = """
import json, sys
import app.run
names = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
open(sys.argv[1], "w").write(json.dumps(sorted(name for name in names if not name.startswith("_"))))
"""


def stages(model: str, device: str) -> dict[str, float]:
    """Seconds of each stage of a fresh process, until the model is ready on its device."""
    with tempfile.NamedTemporaryFile("r") as file:
        run_fresh(["-c", STAGES, model, device, file.name])
        found: dict[str, float] = json.loads(file.read())
        return found


def start_up(scan: pathlib.Path, model: str, rounds: int) -> dict[str, Any]:
    """Seconds of each stage, the time at which the model was ready in a real run, and the floor; medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows, ready = [], []
        for _ in range(rounds):
            rows.append(stages(model, "cpu"))
            run_fresh(["-m", "app", str(scan), str(folder), "--device", "cpu", "--model", model])
            record = json.loads((folder / "run_log.jsonl").read_text().splitlines()[-1])
            ready.append(record["seconds"]["start_up"])
        library = next(name for name in LIBRARIES if record["versions"][name])
        (floor,) = in_turn([["-c", FLOOR.format(library=library), str(find_model(model))]], rounds)
    return {
        "precision": record["precision"],
        "stages_s": {stage: statistics.median(row[stage] for row in rows) for stage in rows[0]},
        "model_ready_s": statistics.median(ready),
        "floor": f"`import {library}` and reading the weights",
        "floor_s": floor.seconds,
        "ratio": floor.seconds / statistics.median(ready),
    }


def imported_packages() -> list[str]:
    """The packages that a run imports before its first case, Python's own left out."""
    with tempfile.NamedTemporaryFile("r") as file:
        run_fresh(["-c", IMPORTED, file.name])
        names: list[str] = json.loads(file.read())
    return names
