"""python -m evaluation: score masks as the organisers do."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import click
from matplotlib.figure import Figure

from app.errors import AppError
from evaluation import confidence as confidences
from evaluation import figures, report, summary
from evaluation.accuracy import CaseScores, EvaluationError, evaluate, listed
from evaluation.efficiency import EfficiencyError, measure_folder
from evaluation.labels import LabelError
from evaluation.metrics import PROTOCOLS
from evaluation.names import NameClashError, scans_by_case


@click.group()
def main() -> None:
    """Score masks, draw the scores, measure time and memory."""


@main.command()
@click.argument("predictions", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("references", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for CSV and table.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="flare21", show_default=True)
@click.option("--case", "cases", multiple=True, help="Score this case only; may be given several times.")
@click.option(
    "--images",
    type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False),
    help="Folder of the scans, for pictures of cases.",
)
def accuracy(
    predictions: pathlib.Path,
    references: pathlib.Path,
    out: pathlib.Path,
    protocol: str,
    cases: tuple[str, ...],
    images: pathlib.Path | None,
) -> None:
    """Score the masks in PREDICTIONS against REFERENCES: DSC and NSD per organ and case; tables, figures, a page."""
    rules = PROTOCOLS[protocol]
    try:
        evaluation = evaluate(predictions, references, rules, cases)
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    for line in evaluation.errors:
        click.echo(f"error: {line}", err=True)
    if evaluation.skipped:
        click.echo(f"{references}: skipped, no masks: {', '.join(evaluation.skipped)}", err=True)
    results = evaluation.scored
    if not results:
        sys.exit("error: no case could be scored")
    out.mkdir(parents=True, exist_ok=True)
    summary.write_csv(results, rules, out / "scores.csv")
    summary.write_summary_csv(results, out / "summary.csv")
    table = summary.markdown(results, rules)
    (out / "table.md").write_text(table)
    drawn = {"Scores": figures.violins(results, rules), "Organ volumes": figures.bland_altman(results)}
    if images is not None and (panels := draw_panels(results, images)):
        drawn["Worst, median and best case"] = panels
    pictures = {caption: report.png_bytes(figure) for caption, figure in drawn.items()}
    for name, png in zip(("scores", "volumes", "cases"), pictures.values(), strict=False):
        (out / f"{name}.png").write_bytes(png)
    (out / "report.html").write_text(report.page(f"Accuracy of {predictions.name}", results, rules, pictures))
    click.echo(table)
    for case in results:
        if case.prediction is None:
            click.echo(f"warning: no prediction for {case.name}, scored 0", err=True)
    sys.exit(1 if evaluation.errors else 0)


def draw_panels(results: Sequence[CaseScores], folder: pathlib.Path) -> Figure | None:
    """Pictures of the cases that have a scan in the folder; a warning instead where that cannot be."""
    try:
        images = scans_by_case(folder)
        pictured = [case for case in results if case.name in images]
        if len(pictured) < len(results):
            missing = listed(case.name for case in results if case.name not in images)
            click.echo(f"warning: {folder}: no scan of {missing}; they are in no picture", err=True)
        return figures.panels(pictured, images) if pictured else None
    except (AppError, LabelError, NameClashError) as error:
        click.echo(f"warning: no pictures of cases: {error}", err=True)
        return None


@main.command()
@click.argument("predictions", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("references", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for table and plot.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="flare21", show_default=True)
@click.option("--case", "cases", multiple=True, help="Take this case only; may be given several times.")
def confidence(
    predictions: pathlib.Path, references: pathlib.Path, out: pathlib.Path, protocol: str, cases: tuple[str, ...]
) -> None:
    """Hold the network's own confidence, in the run log of PREDICTIONS, against the DSC with REFERENCES."""
    try:
        evaluation = evaluate(predictions, references, PROTOCOLS[protocol], cases)
        by_organ = confidences.points(predictions, evaluation.scored)
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    for line in evaluation.errors:
        click.echo(f"error: {line}", err=True)
    out.mkdir(parents=True, exist_ok=True)
    table = confidences.markdown(by_organ)
    (out / "confidence.md").write_text(table)
    (out / "confidence.png").write_bytes(report.png_bytes(confidences.plot(by_organ)))
    click.echo(table)
    sys.exit(1 if evaluation.errors else 0)


@main.command()
@click.argument("scan", type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False))
@click.argument("mask", type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=pathlib.Path))
def picture(scan: pathlib.Path, mask: pathlib.Path, out: pathlib.Path) -> None:
    """Draw SCAN in three planes with the outlines of MASK, as the PNG file OUT."""
    try:
        out.write_bytes(report.png_bytes(figures.three_planes(scan, mask), dpi=80))
    except (AppError, LabelError) as error:
        sys.exit(f"error: {error}")


@main.command()
@click.argument("inputs", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("outputs", type=click.Path(path_type=pathlib.Path))
@click.option("--image", help="Docker image to run for every case; without it predict.sh runs in a fresh process.")
@click.option("--gpu", type=int, default=0, show_default=True, help="The card to use and to watch.")
def efficiency(inputs: pathlib.Path, outputs: pathlib.Path, image: str | None, gpu: int) -> None:
    """Run every scan of INPUTS alone, as the organisers do; masks, samples and their CSV columns go to OUTPUTS."""
    try:
        rows = measure_folder(inputs, outputs, image, gpu)
    except EfficiencyError as error:
        sys.exit(f"error: {error}")
    for row in rows:
        click.echo("  ".join(f"{key} {'null' if value is None else value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
