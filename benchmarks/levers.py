"""What each lever of the CPU path brings: seconds with it, and how far it changes the labels of the plain way.

    python -m benchmarks.levers SCAN.nii.gz [MODEL [LABEL.nii.gz]]

Each row keeps the levers above it. A real scan tells more than a phantom. The DSC is with an expert's LABEL if given.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from app.checkpoint import find_model, load_checkpoint
from app.engines.torch_engine import Model, TorchSession, load_onto
from app.inference.body import body_box
from app.inference.components import keep_largest
from app.inference.grid import network_grid
from app.inference.labelling import Findings, Labelling
from app.inference.plan import Plan
from app.organs import ORGANS
from app.volumes import open_volume
from benchmarks.tables import lever_table
from benchmarks.whole_slices import whole_slice
from evaluation.overlap import dice


def segment_without(missing: Sequence[str], model: Model, scan: pathlib.Path) -> tuple[NDArray[np.uint8], Findings]:
    """What the product does with a scan, with some of its levers taken out: `box`, `scouts`, `interpolation`."""
    volume = open_volume(scan)
    geometry, config = volume.geometry, model.config
    plan = Plan.of(geometry.shape_zyx[0], geometry.spacing_zyx_mm[0])
    anchor_step = 1 if "interpolation" in missing else plan.anchor_step
    plan = Plan(plan.depth, anchor_step, anchor_step if "scouts" in missing else plan.scout_step)
    grid = network_grid(geometry.shape_zyx[1:], geometry.spacing_zyx_mm[1:], config.spacing_mm)
    mask = np.zeros(geometry.shape, np.uint8, order="F")
    labelling = Labelling(
        TorchSession(model, grid),
        config,
        geometry.spacing_zyx_mm,
        geometry.orient(mask),
        plan=plan,
        find_box=whole_slice if "box" in missing else body_box,
    )
    findings = labelling.run(volume.slices())
    keep_largest(mask)
    return mask, findings


ALL = "+ 16 bits, where the CPU is faster with them"
LEVERS = [
    ("full slices, folded, batches", ("box", "scouts", "interpolation")),
    ("+ the abdominal wall's box", ("scouts", "interpolation")),
    ("+ scouts every 12 mm", ("interpolation",)),
    ("+ thin slices interpolated", ()),
    (ALL, ()),
]


def levers(scan: pathlib.Path, model: str, label: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """One row per lever: seconds, slices seen by the network, DSC with the label or else with the first row's mask."""
    rows, reference = [], None if label is None else np.asarray(nib.load(label).dataobj)
    cpu = torch.device("cpu")
    for name, missing in LEVERS:
        placed = load_onto(load_checkpoint(find_model(model)), cpu, None if name == ALL else torch.float32)
        begin = time.perf_counter()
        mask, findings = segment_without(missing, placed, scan)
        seconds = time.perf_counter() - begin
        reference = mask if reference is None else reference
        agreement = {organ.key: dice(reference == organ, mask == organ) for organ in ORGANS}
        rows.append({"lever": name, "seconds": seconds, "network_slices": findings.network_slices, **agreement})
    return rows


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=pathlib.Path)
    parser.add_argument("model", nargs="?", default="fast")
    parser.add_argument("label", nargs="?", type=pathlib.Path)
    print(lever_table(levers(**vars(parser.parse_args()))))
