"""Two folders of masks -> scores per case, a summary, a CSV with the organisers' columns and a Markdown table."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from app.organs import IGNORE, ORGANS, Organ
from app.volumes import Geometry
from app.volumes.nifti import extension_of
from evaluation.labels import LabelError, check_same_grid, read_labels
from evaluation.metrics import Protocol, Score, score_case

BOOTSTRAP_SAMPLES = 10_000


class EvaluationError(Exception):
    """Masks cannot be scored at all; the message says why and what to do."""


@dataclass(frozen=True)
class CaseScores:
    """Scores and volumes of one case; `missing` if there was no prediction, which scores 0."""

    name: str
    scores: dict[Organ, Score]
    reference_ml: dict[Organ, float]
    prediction_ml: dict[Organ, float]
    missing: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What came of two folders of masks.

    Attributes:
        scored: the cases that have scores.
        errors: a line for each case that has none.
        skipped: names in the folder of references that are no masks.
    """

    scored: list[CaseScores]
    errors: list[str]
    skipped: list[str]


def evaluate_case(reference_path: pathlib.Path, predictions: pathlib.Path, protocol: Protocol) -> CaseScores:
    """Score one case; a missing prediction scores 0 for every organ.

    Raises:
        LabelError: the grids differ, or a file is no mask.
    """
    name = reference_path.name.removesuffix(".gz").removesuffix(".nii")
    reference, geometry = read_labels(reference_path, [*Organ, IGNORE])
    spacing_mm = geometry.spacing_zyx_mm
    reference_ml = volumes_ml(reference, geometry)
    path = predictions / reference_path.name
    if not path.exists():
        nothing = {organ: Score(0.0, 0.0) for organ in ORGANS}
        return CaseScores(name, nothing, reference_ml, dict.fromkeys(ORGANS, 0.0), missing=True)
    prediction, other = read_labels(path, list(Organ))
    check_same_grid(path, other, geometry)
    scores = score_case(reference, prediction, spacing_mm, protocol)
    return CaseScores(name, scores, reference_ml, volumes_ml(prediction, geometry))


def volumes_ml(labels: NDArray[np.uint8], geometry: Geometry) -> dict[Organ, float]:
    """The volume of every organ."""
    return {organ: float(np.count_nonzero(labels == organ)) * geometry.voxel_ml for organ in ORGANS}


def evaluate(
    predictions: pathlib.Path, references: pathlib.Path, protocol: Protocol, cases: Sequence[str] = ()
) -> Evaluation:
    """Score every reference of a folder, or those of `cases`, in parallel and in order of name.

    Raises:
        EvaluationError: there are no references.
    """
    masks = [path for path in sorted(references.iterdir()) if extension_of(path)]
    paths = [path for path in masks if not cases or path.name.split(".nii")[0] in cases]
    if not paths:
        raise EvaluationError(f"{references}: no .nii.gz references{' of these cases' if cases else ''}")
    one = partial(_score_or_error, predictions=predictions, protocol=protocol)
    with ProcessPoolExecutor(min(len(paths), os.cpu_count() or 1), get_context("spawn")) as pool:
        outcomes = list(tqdm(pool.map(one, paths), "scoring", len(paths), disable=None))
    scored = [outcome for outcome in outcomes if isinstance(outcome, CaseScores)]
    skipped = [path.name for path in sorted(references.iterdir()) if not extension_of(path)]
    return Evaluation(scored, [outcome for outcome in outcomes if isinstance(outcome, str)], skipped)


def _score_or_error(path: pathlib.Path, predictions: pathlib.Path, protocol: Protocol) -> CaseScores | str:
    """Score one case; or the line that says why it cannot be scored."""
    try:
        return evaluate_case(path, predictions, protocol)
    except LabelError as error:
        return str(error)


def values(results: Sequence[CaseScores], organ: Organ, measure: str) -> NDArray[np.float64]:
    """One measure (`dice` or `surface_dice`) of one organ over the cases."""
    return np.array([getattr(case.scores[organ], measure) for case in results])


def bootstrap_interval(sample: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    means = rng.choice(sample, (BOOTSTRAP_SAMPLES, len(sample))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(results: Sequence[CaseScores]) -> list[dict[str, Any]]:
    """Mean, standard deviation, median and 95 % interval per organ and measure."""
    rows = []
    for organ in ORGANS:
        for measure in ("dice", "surface_dice"):
            sample = values(results, organ, measure)
            low, high = bootstrap_interval(sample)
            rows.append(
                {
                    "organ": organ.key,
                    "measure": "DSC" if measure == "dice" else "NSD",
                    "mean": float(sample.mean()),
                    "std": float(sample.std(ddof=1)) if len(sample) > 1 else 0.0,
                    "median": float(np.median(sample)),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def write_csv(results: Sequence[CaseScores], protocol: Protocol, path: pathlib.Path) -> None:
    """One row per case, with the organisers' columns: Name, DSC_1, NSD-1mm_1, DSC_2, ..."""
    header = ["Name"]
    for organ in ORGANS:
        header += [f"DSC_{organ:d}", f"NSD-{protocol.tolerance_mm[organ]:g}mm_{organ:d}"]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for case in results:
            scores = [case.scores[organ] for organ in ORGANS]
            numbers = [f"{value:.4f}" for score in scores for value in (score.dice, score.surface_dice)]
            writer.writerow([f"{case.name}.nii.gz", *numbers])


def write_summary_csv(results: Sequence[CaseScores], path: pathlib.Path) -> None:
    """The summary as a CSV."""
    rows = summarise(results)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def markdown_table(results: Sequence[CaseScores], protocol: Protocol) -> str:
    """A table in the shape of the paper's Table 4: mean and standard deviation in percent, then each case's DSC."""
    lines = [
        "| organ | DSC (%) | NSD (%) | tolerance | median DSC (%) | 95 % interval of mean DSC (%) |",
        "|---|---|---|---|---|---|",
    ]
    rows = summarise(results)
    for organ, dice, surface in zip(ORGANS, rows[::2], rows[1::2], strict=True):
        columns = [
            dice["organ"],
            f"{100 * dice['mean']:.2f} ± {100 * dice['std']:.2f}",
            f"{100 * surface['mean']:.2f} ± {100 * surface['std']:.2f}",
            f"{protocol.tolerance_mm[organ]:g} mm",
            f"{100 * dice['median']:.2f}",
            f"{100 * dice['low']:.2f} .. {100 * dice['high']:.2f}",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    lines += ["", "| case | " + " | ".join(f"{o.key} DSC / NSD" for o in ORGANS) + " |", "|---" * 5 + "|"]
    for case in results:
        cells = [f"{case.scores[organ].dice:.3f} / {case.scores[organ].surface_dice:.3f}" for organ in ORGANS]
        note = " (no prediction: scored 0)" if case.missing else ""
        lines.append(f"| {case.name}{note} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
