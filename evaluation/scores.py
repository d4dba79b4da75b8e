"""scores.json: the published scores of the bundled models, taken from reports of `python -m evaluation accuracy`.

By name of the set of scans, then by model: what was scored and with which weights, the statistics of every organ, and
the scores of every case. Tables of documents are printed from it, see `benchmarks/published.py`.
"""

from __future__ import annotations

import csv
import datetime
import json
import pathlib
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from app.organs import ORGANS
from app.run_log import RUN_LOG
from evaluation.tables import table

SCORES = pathlib.Path(__file__).with_name("scores.json")
MEASURES = ("DSC", "NSD")

Scores = Mapping[str, Mapping[str, Any]]


class ReportError(Exception):
    """A report cannot be published; the message says why."""


def from_report(report: pathlib.Path, masks: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """What a report says, and which model it is of.

    Args:
        report: the folder that `accuracy` wrote.
        masks: the folder that the program wrote, with its log.

    Raises:
        ReportError: a file is missing, or the masks are not all of one model.
    """
    try:
        log = [json.loads(line) for line in (masks / RUN_LOG).read_text().splitlines()]
        date = datetime.date.fromtimestamp((masks / RUN_LOG).stat().st_mtime)
        cases, tolerances = _cases(report / "scores.csv")
        organs = _organs(report / "summary.csv")
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{report}: not a report of `python -m evaluation accuracy` ({error})") from error
    last = {record["case"]: record for record in log if record["status"] == "done"}
    if missing := sorted(set(cases) - set(last)):
        raise ReportError(f"{masks / RUN_LOG}: says nothing of {missing[0]}; segment the scans again")
    records = [last[case] for case in cases]
    for key in ("model", "weights_sha256", "versions", "precision", "device"):
        if any(record[key] != records[0][key] for record in records):
            raise ReportError(f"{masks / RUN_LOG}: the cases differ in {key}; segment them again in one run")
    of = records[0]
    return of["model"], {
        "version": of["versions"]["app"],
        "weights": of["versions"]["weights"],
        "sha256": of["weights_sha256"],
        "date": date.isoformat(),
        "device": of["device"],
        "precision": of["precision"],
        "tolerance_mm": tolerances,
        "organs": organs,
        "cases": cases,
    }


def _cases(path: pathlib.Path) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """DSC and NSD of every organ by case, and the NSD's tolerance by organ."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in rows[0] if name.startswith("NSD-")]
    nsd = {organ: next(name for name in columns if name.endswith(f"_{organ:d}")) for organ in ORGANS}
    cases = {
        row["Name"].removesuffix(".nii.gz"): {
            organ.key: [float(row[f"DSC_{organ:d}"]), float(row[nsd[organ]])] for organ in ORGANS
        }
        for row in rows
    }
    return cases, {organ.key: float(name.removeprefix("NSD-").split("mm_")[0]) for organ, name in nsd.items()}


def _organs(path: pathlib.Path) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, standard deviation, median and interval by organ and measure."""
    organs: dict[str, dict[str, dict[str, float]]] = {organ.key: {} for organ in ORGANS}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            numbers = {key: float(value) for key, value in row.items() if key not in ("organ", "measure")}
            organs[row["organ"]][row["measure"]] = numbers
    return organs


def record(set_name: str, model: str, result: Mapping[str, Any], path: pathlib.Path = SCORES) -> None:
    """Put a result into the file, in place of the one of the same set and model."""
    scores = json.loads(path.read_text()) if path.exists() else {}
    scores.setdefault(set_name, {})[model] = result
    path.write_text(json.dumps(scores, indent=1) + "\n")


def percent(value: float, digits: int = 1) -> str:
    """A share in percent, halves rounded up as in the published figures."""
    return str((100 * Decimal(str(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def accuracy(scores: Scores, set_name: str) -> str:
    """Mean DSC and NSD of all models, a row per organ."""
    models = scores[set_name]
    return table(
        ["organ", *(f"`{name}` {measure} (%)" for name in models for measure in MEASURES)],
        [
            [
                organ.key,
                *(percent(m["organs"][organ.key][measure]["mean"]) for m in models.values() for measure in MEASURES),
            ]
            for organ in ORGANS
        ],
    )


def about(scores: Scores, set_name: str, model: str | None = None) -> str:
    """One sentence: which weights were scored, of one model or of all, when and how."""
    models = {name: result for name, result in scores[set_name].items() if model in (None, name)}
    named = " and ".join(f"`{name}` {result['weights']}" for name, result in models.items())
    dates = " and ".join(sorted({result["date"] for result in models.values()}))
    devices = " and ".join(sorted({f"{result['device']} in {result['precision']}" for result in models.values()}))
    count = max(len(result["cases"]) for result in models.values())
    return f"{named}, {count} scans, scored {dates} on a {devices}."


def organs(scores: Scores, model: str, set_name: str) -> str:
    """The table of a model card: mean and spread of every organ, in percent."""
    result = scores[set_name][model]
    rows = []
    for organ in ORGANS:
        dice, surface = (result["organs"][organ.key][measure] for measure in MEASURES)
        rows.append(
            [
                organ.key,
                *(f"{percent(one['mean'], 2)} ± {percent(one['std'], 2)}" for one in (dice, surface)),
                f"{result['tolerance_mm'][organ.key]:g} mm",
                percent(dice["median"], 2),
                f"{percent(dice['low'], 2)} .. {percent(dice['high'], 2)}",
            ]
        )
    return table(["organ", "DSC (%)", "NSD (%)", "tolerance", "median DSC (%)", "95 % interval of mean DSC (%)"], rows)


def cases(scores: Scores, model: str, set_name: str) -> str:
    """The other table of a model card: every case."""
    return table(
        ["case", *(f"{organ.key} DSC / NSD" for organ in ORGANS)],
        [
            [name, *(" / ".join(f"{value:.3f}" for value in organ_scores[organ.key]) for organ in ORGANS)]
            for name, organ_scores in scores[set_name][model]["cases"].items()
        ],
    )
