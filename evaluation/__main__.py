"""python -m evaluation: score masks as the organisers do."""

from __future__ import annotations

import pathlib
import sys

import click

from evaluation.accuracy import EvaluationError, evaluate, markdown_table, write_csv, write_summary_csv
from evaluation.metrics import PROTOCOLS


@click.group()
def main() -> None:
    """Score masks, draw the scores, measure time and memory."""


@main.command()
@click.argument("predictions", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.argument("references", type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder for CSV and table.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="flare21", show_default=True)
@click.option("--case", "cases", multiple=True, help="Score this case only; may be given several times.")
def accuracy(
    predictions: pathlib.Path, references: pathlib.Path, out: pathlib.Path, protocol: str, cases: tuple[str, ...]
) -> None:
    """Score the masks in PREDICTIONS against REFERENCES: DSC and NSD per organ and case."""
    rules = PROTOCOLS[protocol]
    try:
        results = evaluate(predictions, references, rules, cases)
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(results, rules, out / "scores.csv")
    write_summary_csv(results, out / "summary.csv")
    table = markdown_table(results, rules)
    (out / "table.md").write_text(table)
    click.echo(table)
    for case in results:
        if case.missing:
            click.echo(f"warning: no prediction for {case.name}, scored 0", err=True)


if __name__ == "__main__":
    main()
