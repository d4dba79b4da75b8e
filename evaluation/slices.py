"""Scores of separate slices: stacks whose slices are not neighbours of each other, one patient each.

Each goes through the program as a scan of one slice, so that all input channels hold that slice whatever distance the
header names, and no other slice has a say in the body's box. Small components stay, because how many an organ has is
known of volumes only.
"""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app.organs import IGNORE, ORGANS, Organ
from app.volumes import Volume, open_volume
from evaluation.labels import check_same_grid, read_labels
from evaluation.names import Labelled
from evaluation.tables import table

Segment = Callable[[pathlib.Path], NDArray[np.uint8]]  # a scan's file -> its mask, in stored axis order
Dice = dict[Organ, float]


def pooled_dice(labelled: Labelled, segment: Segment) -> Dice:
    """DSC per organ over all slices of one patient together; an organ that the reference does not show has none.

    Raises:
        AppError: the stack cannot be read, or a slice of it cannot be segmented.
        LabelError: its reference is not one.
    """
    _, image, label = labelled
    volume = open_volume(image)
    reference, geometry = read_labels(label, [*Organ, IGNORE])
    check_same_grid(label, geometry, volume.geometry)
    overlaps, totals = dict.fromkeys(ORGANS, 0), dict.fromkeys(ORGANS, 0)
    for z, path in single_slices(volume):
        mask, known = segment(path)[:, :, 0].T, reference[z] != IGNORE
        for organ in ORGANS:
            expected, predicted = reference[z] == organ, (mask == organ) & known
            overlaps[organ] += int(np.count_nonzero(expected & predicted))
            totals[organ] += int(np.count_nonzero(expected) + np.count_nonzero(predicted))
    shown = [organ for organ in ORGANS if (reference == organ).any()]
    return {organ: 2 * overlaps[organ] / totals[organ] for organ in shown}


def single_slices(volume: Volume) -> Iterator[tuple[int, pathlib.Path]]:
    """Every slice of a volume as a scan of one slice, (x, y, 1) in LPS order; its file is there until the next one."""
    affine = volume.geometry.oriented_affine
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(volume.slices()) as slices:
        path = pathlib.Path(folder) / f"{volume.path.name.split('.')[0]}.nii"
        for z, plane in slices:
            place = affine.copy()
            place[:3, 3] += z * affine[:3, 2]
            nib.save(nib.Nifti1Image(plane.T[:, :, None], place), path)
            yield z, path


def mean_dice(scores: Mapping[str, Dice]) -> Dice:
    """Mean over the patients who have the organ."""
    known = {organ: [dice[organ] for dice in scores.values() if organ in dice] for organ in ORGANS}
    return {organ: float(np.mean(values)) for organ, values in known.items() if values}


def markdown(scores: Mapping[str, Dice]) -> str:
    """DSC in percent per organ: the mean and the number of patients, then each patient's."""
    counts = {organ: sum(organ in dice for dice in scores.values()) for organ in ORGANS}
    rows: list[Sequence[str]] = [
        ["mean (patients)", *_percent(mean_dice(scores), counts)],
        *([case, *_percent(dice)] for case, dice in scores.items()),
    ]
    return table(["patient", *(f"{organ.key} DSC (%)" for organ in ORGANS)], rows) + "\n"


def _percent(dice: Dice, counts: Mapping[Organ, int] | None = None) -> list[str]:
    notes = {organ: f" ({counts[organ]})" if counts else "" for organ in ORGANS}
    return [f"{100 * dice[organ]:.1f}{notes[organ]}" if organ in dice else "" for organ in ORGANS]


def as_json(facts: Mapping[str, Any], scores: Mapping[str, Dice]) -> str:
    """Every patient's DSC, and what they depend on (see `evaluation.hard.about`)."""
    plain = {case: {organ.key: round(value, 4) for organ, value in dice.items()} for case, dice in scores.items()}
    return json.dumps({**facts, "scores": plain}, indent=1) + "\n"


def write_csv(scores: Mapping[str, Dice], path: pathlib.Path) -> None:
    """A row per patient; empty where the reference does not show the organ."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Name", *(f"DSC_{organ:d}" for organ in ORGANS)])
        for case, dice in scores.items():
            writer.writerow([case, *(f"{dice[organ]:.4f}" if organ in dice else "" for organ in ORGANS)])
