"""How well the network's own confidence ranks scans: against DSC, organ by organ."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from app.organs import ORGANS, Organ
from app.run_log import RUN_LOG, read_records
from app.segmenter import CHECK_BELOW
from evaluation.accuracy import CaseScores, EvaluationError
from evaluation.figures import FACE, ORGAN_COLORS


@dataclass(frozen=True)
class Point:
    """One organ of one case: what the network expected, and what it got."""

    case: str
    model: str
    expected: float
    dice: float


def points(predictions: pathlib.Path, scored: Sequence[CaseScores]) -> dict[Organ, list[Point]]:
    """Expected and true DSC of every case in the run logs of a folder of masks; organs nobody annotated have none.

    Raises:
        EvaluationError: the folder has no run log, or one of an older version.
    """
    records = read_records(predictions)
    if not records:
        raise EvaluationError(f"{predictions}: no readable {RUN_LOG} there; run python -m app into this folder")
    told = {record["case"]: record for record in records if record.get("confidence")}
    if not told:
        raise EvaluationError(f"{predictions}: the run log has no confidence; segment the scans again")
    found: dict[Organ, list[Point]] = {organ: [] for organ in ORGANS}
    for case in scored:
        for organ in ORGANS:
            expected = told.get(case.name, {}).get("confidence", {}).get(organ.key)
            if expected is not None and case.reference_ml[organ] > 0:
                model = told[case.name]["model"]
                found[organ].append(Point(case.name, model, expected, case.scores[organ].dice))
    return found


def table(found: Mapping[Organ, Sequence[Point]]) -> str:
    """Rank correlation, and the mean DSC of scans that would be flagged and of the others, as Markdown."""
    lines = [
        "| organ | scans | rank correlation | flagged below | flagged: scans, mean DSC | others: scans, mean DSC |",
        "|---|---|---|---|---|---|",
    ]
    for organ, row in found.items():
        if len(row) < 2:
            continue
        correlation = spearmanr([p.expected for p in row], [p.dice for p in row])[0]
        least = CHECK_BELOW.get(row[0].model, {}).get(organ)
        flagged = [p.dice for p in row if least is not None and p.expected < least]
        others = [p.dice for p in row if least is None or p.expected >= least]
        parts = [f"{len(part)}, {np.mean(part):.3f}" if part else "0" for part in (flagged, others)]
        limit = "no flag" if least is None else f"{least}"
        lines.append(f"| {organ.key} | {len(row)} | {correlation:.2f} | {limit} | {parts[0]} | {parts[1]} |")
    both = [p for row in found.values() for p in row]
    correlation = spearmanr([p.expected for p in both], [p.dice for p in both])[0]
    lines.append(f"| all | {len(both)} | {correlation:.2f} | | | |")
    return "\n".join(lines) + "\n"


def plot(found: Mapping[Organ, Sequence[Point]]) -> Figure:
    """DSC over what the network expected, a panel per organ, with the limit below which it is flagged."""
    figure = Figure(figsize=(10, 2.9), layout="constrained", facecolor=FACE)
    for axes, (organ, row) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        axes.scatter([p.expected for p in row], [p.dice for p in row], s=18, color=ORGAN_COLORS[organ])
        least = CHECK_BELOW.get(row[0].model, {}).get(organ) if row else None
        if least is not None:
            axes.axvline(least, color="#444444", linestyle="--", linewidth=1)
        axes.set_title(organ.key)
        axes.set_xlabel("expected DSC")
    figure.axes[0].set_ylabel("DSC")
    return figure
