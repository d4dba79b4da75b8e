"""Two folders of masks -> scores per case."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.organs import IGNORE, ORGANS, Organ
from app.volumes import Geometry
from app.volumes.nifti import extension_of
from evaluation.labels import LabelError, check_same_grid, read_labels
from evaluation.metrics import Protocol, Score, score_case
from evaluation.names import NamesError, case_name, check_meanings, masks_by_case
from evaluation.processes import ProcessError, in_processes

LISTED = 5  # names that a message gives


class EvaluationError(Exception):
    """Masks cannot be scored at all; the message says why and what to do."""


@dataclass(frozen=True)
class CaseScores:
    """Scores and volumes of one case.

    Attributes:
        name: of the case.
        reference: its file.
        prediction: its file; None if there is none, which scores 0.
        scores: of every organ.
        reference_ml: volume of every organ in the reference.
        prediction_ml: volume of every organ in the prediction.
    """

    name: str
    reference: pathlib.Path
    prediction: pathlib.Path | None
    scores: dict[Organ, Score]
    reference_ml: dict[Organ, float]
    prediction_ml: dict[Organ, float]


@dataclass(frozen=True)
class Evaluation:
    """What came of two folders of masks.

    Attributes:
        scored: the cases that have scores.
        errors: a line for each case that has none.
        skipped: names in the folder of references that are not masks.
    """

    scored: list[CaseScores]
    errors: list[str]
    skipped: list[str]


Pair = tuple[str, pathlib.Path, pathlib.Path | None]  # case, reference, prediction


def evaluate_case(pair: Pair, protocol: Protocol) -> CaseScores:
    """Score one case; a missing prediction scores 0 for every organ.

    Raises:
        LabelError: the grids differ, or a file is not a mask.
    """
    name, reference_path, prediction_path = pair
    reference, geometry = read_labels(reference_path, [*Organ, IGNORE])
    reference_ml = volumes_ml(reference, geometry)
    if prediction_path is None:
        nothing = {organ: Score(0.0, 0.0) for organ in ORGANS}
        return CaseScores(name, reference_path, None, nothing, reference_ml, dict.fromkeys(ORGANS, 0.0))
    prediction, other = read_labels(prediction_path, list(Organ))
    check_same_grid(prediction_path, other, geometry)
    scores = score_case(reference, prediction, geometry.spacing_zyx_mm, protocol)
    return CaseScores(name, reference_path, prediction_path, scores, reference_ml, volumes_ml(prediction, geometry))


def volumes_ml(labels: NDArray[np.uint8], geometry: Geometry) -> dict[Organ, float]:
    """The volume of every organ."""
    return {organ: float(np.count_nonzero(labels == organ)) * geometry.voxel_ml for organ in ORGANS}


def evaluate(
    predictions: pathlib.Path, references: pathlib.Path, protocol: Protocol, cases: Sequence[str] = ()
) -> Evaluation:
    """Score every reference of a folder, or those of `cases`, in parallel and in order of name.

    A mask belongs to the reference of its name, whatever their extensions (`.nii` or `.nii.gz`).

    Raises:
        EvaluationError: there are no references, none of a case that was asked for, or no mask for any of them.
    """
    pairs = find_pairs(predictions, references, cases)
    try:
        outcomes = in_processes(partial(_score_or_error, protocol=protocol), pairs, "scoring")
    except ProcessError as error:
        raise EvaluationError(str(error)) from error
    scored = [outcome for outcome in outcomes if isinstance(outcome, CaseScores)]
    skipped = [path.name for path in sorted(references.iterdir()) if not extension_of(path)]
    return Evaluation(scored, [outcome for outcome in outcomes if isinstance(outcome, str)], skipped)


def find_pairs(predictions: pathlib.Path, references: pathlib.Path, cases: Sequence[str] = ()) -> list[Pair]:
    """Every reference of a folder, or those of `cases`, with its mask.

    Raises:
        EvaluationError: as `evaluate`.
    """
    try:
        wanted, masks = masks_by_case(references), masks_by_case(predictions)
        for folder in (predictions, references, references.parent):  # nnU-Net describes what it writes, too
            check_meanings(folder)
    except NamesError as error:
        raise EvaluationError(str(error)) from error
    if not wanted:
        raise EvaluationError(f"{references}: no .nii.gz references; give the folder that holds them")
    chosen = [case_name(case) for case in cases] or list(wanted)
    if unknown := [name for name in chosen if name not in wanted]:
        raise EvaluationError(f"{references}: no reference of case {unknown[0]}; there are {listed(wanted)}")
    if not any(name in masks for name in chosen):
        raise EvaluationError(
            f"{predictions}: no mask has the name of a reference, so there is nothing to score; "
            f"masks: {listed(masks)}; references: {listed(chosen)}; rename them or give another folder"
        )
    return [(name, wanted[name], masks.get(name)) for name in sorted(set(chosen))]


def listed(names: Iterable[str]) -> str:
    """The first few names, in words."""
    known = sorted(names)
    return ", ".join(known[:LISTED]) + (" and others" if len(known) > LISTED else "") if known else "none"


def _score_or_error(pair: Pair, protocol: Protocol) -> CaseScores | str:
    """Score one case; or the line that says why it cannot be scored."""
    try:
        return evaluate_case(pair, protocol)
    except LabelError as error:
        return str(error)
