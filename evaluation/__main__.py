"""python -m evaluation: score masks as the organisers do."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator, Sequence

import click
from matplotlib.figure import Figure
from tqdm import tqdm

from app.checkpoint import bundled_models
from app.errors import AppError
from app.organs import ORGANS
from app.process import full_disk_in_one_line
from app.segmenter import Segmenter
from evaluation import confidence as confidences
from evaluation import figures, hard, report, scores, summary
from evaluation import slices as separate
from evaluation.accuracy import CaseScores, EvaluationError, evaluate, listed
from evaluation.efficiency import EfficiencyError, measure_folder
from evaluation.labels import LabelError
from evaluation.metrics import PROTOCOLS
from evaluation.names import NamesError, labelled_scans, scans_by_case

PROTOCOL = click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    default="flare21",
    show_default=True,
    help="Year whose rules apply.",
)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What cannot be scored ends the process with a line on standard error."""
    try:
        yield
    except (AppError, LabelError, NamesError, EvaluationError, EfficiencyError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}; check the folder and its permissions")


@contextlib.contextmanager
def folder_of_report(out: pathlib.Path) -> Iterator[None]:
    """Make the folder of a report before hours of work, in case it cannot be made; none is left if that work fails."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):  # it is not empty
            out.rmdir()
        raise


def quietly() -> None:
    """Leave out what the program warns of in scan after scan; scores say more."""
    logging.getLogger("app").setLevel(logging.ERROR)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Score masks, draw the scores, measure time and memory."""


@main.command()
@click.argument("predictions", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("references", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for CSV and table.")
@PROTOCOL
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
    with errors_in_one_line(), folder_of_report(out):
        evaluation = evaluate(predictions, references, rules, cases)
    for line in evaluation.errors:
        click.echo(f"error: {line}", err=True)
    if evaluation.skipped:
        click.echo(f"{references}: skipped, no masks: {', '.join(evaluation.skipped)}", err=True)
    results = evaluation.scored
    if not results:
        sys.exit("error: no case could be scored")
    summary.write_csv(results, rules, out / "scores.csv")
    summary.write_summary_csv(results, out / "summary.csv")
    table = summary.markdown(results, rules)
    (out / "table.md").write_text(table, "utf-8")
    drawn = {"Scores": figures.violins(results, rules), "Organ volumes": figures.bland_altman(results)}
    if images is not None and (panels := draw_panels(results, images)):
        drawn["Worst, median and best case"] = panels
    pictures = {caption: report.png_bytes(figure) for caption, figure in drawn.items()}
    for name, png in zip(("scores", "volumes", "cases"), pictures.values(), strict=False):
        (out / f"{name}.png").write_bytes(png)
    (out / "report.html").write_text(report.page(f"Accuracy of {predictions.name}", results, rules, pictures), "utf-8")
    click.echo(table)
    for case in results:
        if case.prediction is None:
            click.echo(f"warning: no prediction for {case.name}, scored 0", err=True)
    for organ in ORGANS:
        if any(case.prediction_ml[organ] for case in results) and not any(case.reference_ml[organ] for case in results):
            click.echo(f"warning: no reference shows {organ.key}; where masks do, the score is 0", err=True)
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
    except (AppError, LabelError, NamesError) as error:
        click.echo(f"warning: no pictures of cases: {error}", err=True)
        return None


@main.command()
@click.argument("predictions", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("references", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for table and plot.")
@PROTOCOL
@click.option("--case", "cases", multiple=True, help="Take this case only; may be given several times.")
def confidence(
    predictions: pathlib.Path, references: pathlib.Path, out: pathlib.Path, protocol: str, cases: tuple[str, ...]
) -> None:
    """Hold the network's own confidence, in the run log of PREDICTIONS, against the DSC with REFERENCES."""
    with errors_in_one_line(), folder_of_report(out):
        evaluation = evaluate(predictions, references, PROTOCOLS[protocol], cases)
        by_organ = confidences.points(predictions, evaluation.scored)
    for line in evaluation.errors:
        click.echo(f"error: {line}", err=True)
    table = confidences.markdown(by_organ)
    (out / "confidence.md").write_text(table, "utf-8")
    (out / "confidence.png").write_bytes(report.png_bytes(confidences.plot(by_organ)))
    click.echo(table)
    sys.exit(1 if evaluation.errors else 0)


@main.command()
@click.argument("set_name", metavar="SET")
@click.argument("report", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--masks", type=click.Path(path_type=pathlib.Path), help="Folder of the masks; default: REPORT/masks.")
def record(set_name: str, report: pathlib.Path, masks: pathlib.Path | None) -> None:
    """Take the scores of REPORT, which `accuracy` wrote, into evaluation/scores.json, as those of the scans SET.

    Of SET `hard`, take those that `hard` wrote into evaluation/hard.json.
    """
    try:
        if set_name == "hard":
            click.echo(f"{scores.HARD_SCORES}: {', '.join(scores.record_hard(report))}")
            return
        model, result = scores.from_report(report, masks or report / "masks")
    except scores.ReportError as error:
        sys.exit(f"error: {error}")
    scores.record(set_name, model, result)
    click.echo(f"{scores.SCORES}: {set_name}, {model} {result['weights']}, {len(result['cases'])} cases")


@main.command()
@click.argument("data", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--model", default="fast", show_default=True, help="A bundled model, or a weights file.")
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for CSV and table.")
def slices(data: pathlib.Path, model: str, out: pathlib.Path) -> None:
    """Score a model on separate slices: stacks in DATA's imagesTr and labelsTr whose slices are not neighbours.

    DSC per organ over all slices of a patient together, without removing small components; then the mean over patients.
    """
    quietly()
    with errors_in_one_line(), folder_of_report(out):
        segmenter = Segmenter.load(model, postprocess=False)
        stacks = tqdm(labelled_scans(data), "segmenting", disable=None)
        dice = {labelled[0]: separate.pooled_dice(labelled, segmenter.segment) for labelled in stacks}
    separate.write_csv(dice, out / "scores.csv")
    facts = hard.about({segmenter.model.name: segmenter})
    (out / scores.SLICES).write_text(separate.as_json(facts, dice), "utf-8")
    (out / "table.md").write_text(separate.markdown(dice), "utf-8")
    click.echo(separate.markdown(dice))


@main.command("hard")
@click.argument("data", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--model", "models", multiple=True, help="A bundled model; may be given several times. Default: all.")
@click.option(
    "--variants",
    type=click.Path(path_type=pathlib.Path),
    default=pathlib.Path("cache/hard"),
    show_default=True,
    help="Folder of the variants.",
)
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for JSON and table.")
@PROTOCOL
def evaluate_hard(
    data: pathlib.Path, models: tuple[str, ...], variants: pathlib.Path, out: pathlib.Path, protocol: str
) -> None:
    """Score models on the scans in DATA's imagesTr and labelsTr and on harder variants of them.

    The variants keep DATA's layout, for other programs to be scored on too.
    """
    quietly()
    rules, out_files = PROTOCOLS[protocol], (out / "hard.json", out / "hard.md")
    with errors_in_one_line(), folder_of_report(out):
        segmenters = {name: Segmenter.load(name) for name in models or bundled_models()}
        scans = hard.make_variants(labelled_scans(data), variants)
        results = {name: hard.score(one, scans, rules) for name, one in segmenters.items()}
    facts = hard.about(segmenters, rules)
    for path, text in zip(out_files, (hard.as_json(facts, results), hard.markdown(facts, results)), strict=True):
        path.write_text(text, "utf-8")
    click.echo(hard.markdown(facts, results))


@main.command()
@click.argument("scan", type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False))
@click.argument("mask", type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=pathlib.Path))
def picture(scan: pathlib.Path, mask: pathlib.Path, out: pathlib.Path) -> None:
    """Draw SCAN in three planes with the outlines of MASK, as the PNG file OUT."""
    with errors_in_one_line():
        out.write_bytes(report.png_bytes(figures.three_planes(scan, mask), dpi=80))


@main.command()
@click.argument("inputs", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("outputs", type=click.Path(path_type=pathlib.Path))
@click.option("--image", help="Docker image to run for every case; without it predict.sh runs in a fresh process.")
@click.option("--gpu", type=int, default=0, show_default=True, help="The card to use and to watch.")
def efficiency(inputs: pathlib.Path, outputs: pathlib.Path, image: str | None, gpu: int) -> None:
    """Run every scan of INPUTS alone, as the organisers do; masks, samples and their CSV columns go to OUTPUTS."""
    with errors_in_one_line():
        rows = measure_folder(inputs, outputs, image, gpu)
    for row in rows:
        click.echo("  ".join(f"{key} {'null' if value is None else value}" for key, value in row.items()))


if __name__ == "__main__":
    with full_disk_in_one_line():
        main()
