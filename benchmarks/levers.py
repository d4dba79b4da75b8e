"""What each lever of the CPU path brings: seconds with it, and how far it changes the labels of the plain way.

    python -m benchmarks.levers SCAN.nii.gz [MODEL [LABEL.nii.gz]]

Each row keeps the levers above it. A real scan tells more than a phantom. The DSC is with an expert's LABEL if given.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import torch

from app import segment
from app.checkpoint import find_model, load_checkpoint
from app.model import place
from app.scan import open_scan
from app.segmenter import Segmenter
from app.slices import Plan
from evaluation.metrics import ORGANS, dice


@contextlib.contextmanager
def without(*levers: str) -> Iterator[None]:
    """The product with some of its levers taken out."""

    def every(depth: int, spacing_z_mm: float) -> Plan:
        plan = original(depth, spacing_z_mm)
        anchor_step = 1 if "interpolation" in levers else plan.anchor_step
        return Plan(depth, anchor_step, anchor_step if "scouts" in levers else plan.scout_step)

    original = Plan.of
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(Plan, "of", every))
        if "box" in levers:
            whole = lambda inputs, *_: tuple(slice(0, side) for side in inputs.shape[1:])  # noqa: E731
            stack.enter_context(patch.object(segment, "body_box", whole))
        yield


ALL = "+ 16 bits, where the CPU is faster with them"
LEVERS = [
    ("full slices, folded, batches", ("box", "scouts", "interpolation")),
    ("+ the abdominal wall's box", ("scouts", "interpolation")),
    ("+ scouts every 12 mm", ("interpolation",)),
    ("+ thin slices interpolated", ()),
    (ALL, ()),
]


def levers(scan: pathlib.Path, model: str, label: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """One row a lever: seconds, slices seen by the network, DSC with the label or else with the first row's mask."""
    rows, reference = [], None if label is None else np.asarray(nib.load(label).dataobj)
    single = Segmenter(place(load_checkpoint(find_model(model)), torch.device("cpu"), torch.float32), {})
    for name, missing in LEVERS:
        segmenter = Segmenter.load(model, "cpu") if name == ALL else single
        with without(*missing):
            opened = open_scan(scan)
            begin = time.perf_counter()
            result = segmenter.segment_scan(opened, opened.slices())
            seconds = time.perf_counter() - begin
        reference = result.mask if reference is None else reference
        agreement = {organ.name.lower(): dice(reference == organ, result.mask == organ) for organ in ORGANS}
        rows.append(
            {
                "lever": name,
                "seconds": seconds,
                "network_slices": result.findings.network_slices,
                **agreement,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    organs = [organ.name.lower() for organ in ORGANS]
    lines = [f"| lever | seconds | network slices | {' | '.join(f'DSC {o}' for o in organs)} |", "|---" * 7 + "|"]
    for row in rows:
        cells = " | ".join(f"{row[organ]:.4f}" for organ in organs)
        lines.append(f"| {row['lever']} | {row['seconds']:.1f} | {row['network_slices']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=pathlib.Path)
    parser.add_argument("model", nargs="?", default="fast")
    parser.add_argument("label", nargs="?", type=pathlib.Path)
    print(table(levers(**vars(parser.parse_args()))))
