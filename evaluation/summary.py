"""Scores of many cases -> statistics with intervals, CSVs with the organisers' columns, and Markdown tables."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from app.organs import ORGANS, Organ
from evaluation.accuracy import CaseScores
from evaluation.metrics import Protocol, Score
from evaluation.tables import table

Measure = Literal["DSC", "NSD"]
MEASURES: tuple[Measure, ...] = ("DSC", "NSD")
BOOTSTRAP_SAMPLES = 10_000
NO_PREDICTION = " (no prediction: scored 0)"


@dataclass(frozen=True)
class Statistics:
    """One measure of one organ over the cases, 0..1.

    Attributes:
        mean: over the cases.
        std: sample standard deviation; 0 for one case.
        median: over the cases.
        low: lower end of the mean's 95 % interval.
        high: its upper end.
    """

    mean: float
    std: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: NDArray[np.float64]) -> Statistics:
        """Those of at least one value."""
        std = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
        return cls(float(sample.mean()), std, float(np.median(sample)), *bootstrap_interval(sample))


def values(results: Sequence[CaseScores], organ: Organ, measure: Measure) -> NDArray[np.float64]:
    """One measure of one organ over the cases."""
    scores = [case.scores[organ] for case in results]
    return np.array([score.dice if measure == "DSC" else score.surface_dice for score in scores])


def bootstrap_interval(sample: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; of a single value that value."""
    if len(sample) < 2:
        return float(sample[0]), float(sample[0])
    interval = bootstrap(
        (sample,),
        np.mean,
        n_resamples=BOOTSTRAP_SAMPLES,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise(results: Sequence[CaseScores]) -> dict[Organ, dict[Measure, Statistics]]:
    """The statistics of every organ and measure."""
    return {
        organ: {measure: Statistics.of(values(results, organ, measure)) for measure in MEASURES} for organ in ORGANS
    }


def write_csv(results: Sequence[CaseScores], protocol: Protocol, path: pathlib.Path) -> None:
    """One row per case, with the organisers' columns: Name, DSC_1, NSD-1mm_1, DSC_2, ..."""
    header = ["Name"]
    for organ in ORGANS:
        header += [f"DSC_{organ:d}", f"NSD-{protocol.tolerance_mm[organ]:g}mm_{organ:d}"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for case in results:
            scores = [case.scores[organ] for organ in ORGANS]
            numbers = [f"{value:.4f}" for score in scores for value in (score.dice, score.surface_dice)]
            writer.writerow([f"{case.name}.nii.gz", *numbers])


def write_summary_csv(results: Sequence[CaseScores], path: pathlib.Path) -> None:
    """The summary as a CSV, a row per organ and measure."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["organ", "measure", *Statistics.__dataclass_fields__])
        for organ, measures in summarise(results).items():
            for measure, statistics in measures.items():
                writer.writerow([organ.key, measure, *(f"{value:.4f}" for value in asdict(statistics).values())])


def markdown(results: Sequence[CaseScores], protocol: Protocol) -> str:
    """A table in the shape of the paper's Table 4: mean and standard deviation in percent, then each case's scores."""
    cases = {case.name + (NO_PREDICTION if case.prediction is None else ""): case.scores for case in results}
    return f"{organ_table(summarise(results), protocol.tolerance_mm)}\n\n{case_table(cases)}\n"


def organ_table(organs: Mapping[Organ, Mapping[Measure, Statistics]], tolerance_mm: Mapping[Organ, float]) -> str:
    """A row per organ: both measures in percent, the NSD's tolerance, and where the mean DSC lies."""
    return table(
        ["organ", "DSC (%)", "NSD (%)", "tolerance", "median DSC (%)", "95 % interval of mean DSC (%)"],
        [
            [
                organ.key,
                *(f"{100 * measures[m].mean:.2f} ± {100 * measures[m].std:.2f}" for m in MEASURES),
                f"{tolerance_mm[organ]:g} mm",
                f"{100 * measures['DSC'].median:.2f}",
                f"{100 * measures['DSC'].low:.2f} .. {100 * measures['DSC'].high:.2f}",
            ]
            for organ, measures in organs.items()
        ],
    )


def case_table(cases: Mapping[str, Mapping[Organ, Score]]) -> str:
    """A row per case: DSC and NSD of every organ that was scored."""
    organs = list(next(iter(cases.values()), {}))
    return table(
        ["case", *(f"{organ.key} DSC / NSD" for organ in organs)],
        [
            [name, *(f"{scores[organ].dice:.3f} / {scores[organ].surface_dice:.3f}" for organ in organs)]
            for name, scores in cases.items()
        ],
    )
