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
from app.volumes.nifti import extension_of
from evaluation.accuracy import CaseScores, EvaluationError, listed
from evaluation.figures import FACE, ORGAN_COLORS
from evaluation.names import case_name
from evaluation.tables import table


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
        EvaluationError: the folder has no run log, one of an older version, or one of other cases.
    """
    records = read_records(predictions)
    if not records:
        raise EvaluationError(f"{predictions}: no readable {RUN_LOG} there; run python -m app into this folder")
    sure = {_mask_name(record["case"]): record for record in records if record.get("confidence")}
    if not sure:
        raise EvaluationError(f"{predictions}: the run log has no confidence; segment the scans again")
    by_organ: dict[Organ, list[Point]] = {organ: [] for organ in ORGANS}
    for case in (case for case in scored if case.name in sure):
        record = sure[case.name]
        for organ in ORGANS:
            expected = record["confidence"].get(organ.key)
            if expected is not None and case.reference_ml[organ] > 0:
                by_organ[organ].append(Point(case.name, record["model"], expected, case.scores[organ].dice))
    if not any(by_organ.values()):
        names = listed(case.name for case in scored)
        raise EvaluationError(f"{predictions}: the run log has none of the scored cases: {listed(sure)}, not {names}")
    return by_organ


def _mask_name(case: str) -> str:
    """The name under which a case of the log is scored: that of `a.nii` is the scan's whole name, its mask's is `a`."""
    return case_name(case.removesuffix(extension_of(pathlib.Path(case)) or ""))


def markdown(by_organ: Mapping[Organ, Sequence[Point]]) -> str:
    """Rank correlation, and the mean DSC of scans that would be flagged and of the others, as Markdown."""
    rows = []
    for organ, row in by_organ.items():
        if len(row) < 2:
            continue
        least = CHECK_BELOW.get(row[0].model, {}).get(organ)
        flagged = [p.dice for p in row if least is not None and p.expected < least]
        others = [p.dice for p in row if least is None or p.expected >= least]
        parts = [f"{len(part)}, {np.mean(part):.3f}" if part else "0" for part in (flagged, others)]
        limit = "no flag" if least is None else f"{least}"
        rows.append([organ.key, len(row), f"{correlation(row):.2f}", limit, *parts])
    every = [p for row in by_organ.values() for p in row]
    rows.append(["all", len(every), f"{correlation(every):.2f}" if len(every) > 1 else "", "", "", ""])
    header = ["organ", "scans", "rank correlation", "flagged below", "flagged: scans, mean DSC"]
    return table([*header, "others: scans, mean DSC"], rows) + "\n"


def correlation(row: Sequence[Point]) -> float:
    """Spearman's, of expected and true DSC."""
    return float(spearmanr([p.expected for p in row], [p.dice for p in row])[0])


def plot(by_organ: Mapping[Organ, Sequence[Point]]) -> Figure:
    """DSC over what the network expected, a panel per organ, with the limit below which it is flagged."""
    figure = Figure(figsize=(10, 2.9), layout="constrained", facecolor=FACE)
    for axes, (organ, row) in zip(figure.subplots(1, len(by_organ)), by_organ.items(), strict=True):
        axes.scatter([p.expected for p in row], [p.dice for p in row], s=18, color=ORGAN_COLORS[organ])
        least = CHECK_BELOW.get(row[0].model, {}).get(organ) if row else None
        if least is not None:
            axes.axvline(least, color="#444444", linestyle="--", linewidth=1)
        axes.set_title(organ.key)
        axes.set_xlabel("expected DSC")
    figure.axes[0].set_ylabel("DSC")
    return figure
