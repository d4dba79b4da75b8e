"""DSC and NSD of one organ, by the organisers' rules.

Source: github.com/JunMa11/FLARE, Evaluation; NSD is google-deepmind/surface-distance's surface Dice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from app.organs import IGNORE, ORGANS, Organ, bounding_box
from evaluation.overlap import dice


@dataclass(frozen=True)
class Protocol:
    """What differs between the years.

    Attributes:
        name: of the protocol.
        tolerance_mm: how far apart two surfaces may be, per organ.
        least_dice: below this DSC the NSD is set to 0.
    """

    name: str
    tolerance_mm: dict[Organ, float]
    least_dice: float = 0.0


FLARE21_MM = dict.fromkeys(ORGANS, 1.0)
# An organ that is not here has the tolerance of 2021; every table says which.
FLARE22_MM = FLARE21_MM | {Organ.LIVER: 5.0, Organ.KIDNEYS: 3.0, Organ.SPLEEN: 3.0, Organ.PANCREAS: 5.0}
PROTOCOLS = {
    "flare21": Protocol("flare21", FLARE21_MM),
    "flare22": Protocol("flare22", FLARE22_MM, least_dice=0.2),
}


@dataclass(frozen=True)
class Score:
    """DSC and NSD of one organ in one case, both 0..1."""

    dice: float
    surface_dice: float


def score_organ(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: tuple[float, ...],
    tolerance_mm: float,
    least_dice: float = 0.0,
) -> Score:
    """Score one organ.

    Both empty: 1 and 1. One of them empty: 0 and 0.

    Args:
        reference: the organ's voxels, 3-D.
        prediction: of the same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: of the NSD.
        least_dice: below this DSC the NSD is 0.
    """
    box = bounding_box(reference | prediction)
    if box is None:
        return Score(1.0, 1.0)
    reference, prediction = reference[box], prediction[box]
    if not reference.any() or not prediction.any():
        return Score(0.0, 0.0)
    overlap = dice(reference, prediction)
    if overlap < least_dice:
        return Score(overlap, 0.0)
    distances = compute_surface_distances(reference, prediction, spacing_mm)
    return Score(overlap, float(compute_surface_dice_at_tolerance(distances, tolerance_mm)))


def score_case(
    reference: NDArray[Any], prediction: NDArray[Any], spacing_mm: tuple[float, ...], protocol: Protocol
) -> dict[Organ, Score]:
    """Score every organ of a case; voxels labelled 255 in the reference count as background in both.

    Args:
        reference: reference labels, values of `Organ`, and 255.
        prediction: predicted labels, values of `Organ`, same shape.
        spacing_mm: voxel size along each axis.
        protocol: tolerances and rules.
    """
    if (reference == IGNORE).any():
        prediction = np.where(reference == IGNORE, 0, prediction)
    return {
        organ: score_organ(
            reference == organ, prediction == organ, spacing_mm, protocol.tolerance_mm[organ], protocol.least_dice
        )
        for organ in ORGANS
    }
