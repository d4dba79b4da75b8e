"""scores.json: the published scores of the bundled models, taken from the reports of `python -m evaluation`.

By name of the set of scans, then by model: what was scored and with which weights, the statistics of every organ, and
the scores of every case. Documents get their tables from it, see `benchmarks/published.py`.
"""

from __future__ import annotations

import csv
import datetime
import json
import pathlib
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from app.organs import ORGANS, Organ
from app.run_log import RUN_LOG
from evaluation.metrics import Score
from evaluation.summary import MEASURES, Statistics, case_table, organ_table
from evaluation.tables import table

SCORES = pathlib.Path(__file__).with_name("scores.json")
HARD = "hard.json"  # what `hard` writes
HARD_SCORES = SCORES.with_name(HARD)  # the published ones of every model
SLICES = "slices.json"  # what `slices` writes; its sets have no NSD, and not every organ in every case

Scores = Mapping[str, Mapping[str, Any]]


class ReportError(Exception):
    """A report cannot be published; the message says why."""


class UnmeasuredError(Exception):
    """A document asks for scores that nobody has recorded."""


def from_report(report: pathlib.Path, masks: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """What a report says, and which model it is of.

    Args:
        report: the folder that `accuracy` or `slices` wrote.
        masks: the folder that the program wrote, with its log; not asked for after `slices`.

    Raises:
        ReportError: a file is missing, or the masks are not all of one model.
    """
    try:
        if (report / SLICES).exists():
            return _of_slices(json.loads((report / SLICES).read_bytes()))
        log = [json.loads(line) for line in (masks / RUN_LOG).read_text("utf-8").splitlines()]
        date = datetime.date.fromtimestamp((masks / RUN_LOG).stat().st_mtime)
        cases, tolerances = _cases(report / "scores.csv")
        organs = _organs(report / "summary.csv")
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{report}: not a report of `python -m evaluation accuracy` or `slices` ({error})") from error
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
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in rows[0] if name.startswith("NSD-")]
    nsd = {organ: name for organ in ORGANS for name in columns if name.endswith(f"_{organ:d}")}
    cases = {
        row["Name"].removesuffix(".nii.gz"): {
            organ.key: [float(row[f"DSC_{organ:d}"]), float(row[name])] for organ, name in nsd.items()
        }
        for row in rows
    }
    return cases, {organ.key: float(name.removeprefix("NSD-").split("mm_")[0]) for organ, name in nsd.items()}


def _organs(path: pathlib.Path) -> dict[str, dict[str, dict[str, float]]]:
    """The statistics by organ and measure."""
    organs: dict[str, dict[str, dict[str, float]]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            numbers = {key: float(value) for key, value in row.items() if key not in ("organ", "measure")}
            organs.setdefault(row["organ"], {})[row["measure"]] = numbers
    return organs


def _of_slices(found: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The same of separate slices: DSC alone, of the organs that a patient's reference shows."""
    ((name, model),) = found["models"].items()
    cases = found["scores"]
    shown = {o.key: [dice[o.key] for dice in cases.values() if o.key in dice] for o in ORGANS}
    return name, {
        "version": found["version"],
        "weights": model["version"],
        "sha256": model["sha256"],
        "date": found["date"],
        "device": model["device"],
        "precision": model["precision"],
        "organs": {
            key: {"DSC": {"mean": round(sum(values) / len(values), 4), "cases": len(values)}}
            for key, values in shown.items()
            if values
        },
        "cases": cases,
    }


def record(set_name: str, model: str, result: Mapping[str, Any], path: pathlib.Path = SCORES) -> None:
    """Put a result into the file, in place of the one of the same set and model."""
    scores = json.loads(path.read_text()) if path.exists() else {}
    scores.setdefault(set_name, {})[model] = result
    path.write_text(json.dumps(scores, indent=1) + "\n")


def record_hard(report: pathlib.Path, path: pathlib.Path = HARD_SCORES) -> list[str]:
    """Put what `hard` wrote into the file, in place of what there is of the same models; returns their names.

    Raises:
        ReportError: it is no such report.
    """
    try:
        found = json.loads((report / HARD).read_bytes())
        facts = {key: found[key] for key in ("version", "date", "machine", "protocol")}
        models = {
            name: {
                **facts,
                "weights": model["version"],
                **{key: model[key] for key in ("sha256", "device", "precision")},
                "scores": found["scores"][name],
            }
            for name, model in found["models"].items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{report}: not a report of `python -m evaluation hard` ({error})") from error
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | models, indent=1) + "\n")
    return list(models)


def percent(value: float) -> str:
    """A share in percent with one digit, halves rounded up."""
    return str((100 * Decimal(str(value))).quantize(Decimal("0.1"), ROUND_HALF_UP))


def of_set(scores: Scores, set_name: str, model: str | None = None) -> dict[str, Any]:
    """The results of a set by model, or of one model alone.

    Raises:
        UnmeasuredError: there are none.
    """
    models = {name: result for name, result in scores.get(set_name, {}).items() if model in (None, name)}
    if not models:
        raise UnmeasuredError(f"{set_name} {model or ''}")
    return models


def accuracy(scores: Scores, set_name: str) -> str:
    """Mean DSC and NSD of all models, a row per organ; empty where a model's report does not have it."""
    models = {name: result["organs"] for name, result in of_set(scores, set_name).items()}
    columns = [(name, m) for name, found in models.items() for m in MEASURES if any(m in one for one in found.values())]

    def cell(organ: Organ, name: str, measure: str) -> str:
        found = models[name].get(organ.key, {})
        return percent(found[measure]["mean"]) if measure in found else ""

    return table(
        ["organ", *(f"`{name}` {measure} (%)" for name, measure in columns)],
        [[organ.key, *(cell(organ, *column) for column in columns)] for organ in _scored(*models.values())],
    )


def _scored(*found: Mapping[str, Any]) -> list[Organ]:
    """The organs that one of these has by name: those that were known when they were recorded."""
    return [organ for organ in ORGANS if any(organ.key in one for one in found)]


def about(scores: Scores, set_name: str, model: str | None = None) -> str:
    """One sentence: which weights were scored, of one model or of all, when and how."""
    models = of_set(scores, set_name, model)
    named = " and ".join(f"`{name}` {result['weights']}" for name, result in models.items())
    dates = " and ".join(sorted({result["date"] for result in models.values()}))
    devices = " and ".join(sorted({f"{result['device']} in {result['precision']}" for result in models.values()}))
    count = max(len(result["cases"]) for result in models.values())
    return f"{named}, {count} scans, scored {dates} on a {devices}."


def organs(scores: Scores, model: str, set_name: str) -> str:
    """The first table of a report: mean and spread of every organ."""
    result = of_set(scores, set_name, model)[model]
    statistics = {
        organ: {
            measure: Statistics(**{"median": 0.0, "low": 0.0, "high": 0.0} | result["organs"][organ.key][measure])
            for measure in MEASURES
        }
        for organ in _scored(result["organs"])
    }
    return organ_table(statistics, {organ: result["tolerance_mm"][organ.key] for organ in statistics})


def cases(scores: Scores, model: str, set_name: str) -> str:
    """The second table of a report: every case."""
    found = of_set(scores, set_name, model)[model]["cases"]
    return case_table({name: {o: Score(*one[o.key]) for o in _scored(one)} for name, one in found.items()})


def hard(found: Mapping[str, Any], model: str) -> str:
    """Mean DSC of one model on harder copies of the scans, and in brackets its difference from the clean scans.

    Args:
        found: see `record_hard`.
        model: its name.
    """
    result = found[model]
    variants = result["scores"]
    organs = _scored(*variants["clean"].values())
    means = {name: {organ: _mean_dice(by_case, organ) for organ in organs} for name, by_case in variants.items()}
    rows = []
    for name, mean in means.items():
        changes = {organ: 100 * (mean[organ] - means["clean"][organ]) for organ in organs}
        notes = {organ: "" if name == "clean" else f" ({change:+.1f})" for organ, change in changes.items()}
        rows.append([name, *(f"{100 * mean[organ]:.1f}{notes[organ]}" for organ in organs)])
    said = (
        f"`{model}` {result['weights']}, scored {result['date']} with version {result['version']} on a "
        f"{result['device']} in {result['precision']}."
    )
    return f"{said}\n\n" + table(["scans", *(f"{organ.key} DSC (%)" for organ in organs)], rows)


def _mean_dice(by_case: Mapping[str, Any], organ: Organ) -> float:
    return sum(float(one[organ.key]["DSC"]) for one in by_case.values()) / len(by_case)
