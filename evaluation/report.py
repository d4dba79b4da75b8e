"""One self-contained HTML page: the tables and the figures of an evaluation."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from app.organs import ORGANS
from evaluation.accuracy import CaseScores, summarise
from evaluation.metrics import Protocol

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { width: 100%; height: auto; }
p.note { color: #555; font-size: .9rem; }
"""


def png_bytes(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the header, as an HTML table that scrolls sideways on a narrow screen."""
    head, *body = (
        "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row)
        for cell, row in zip(["th"] + ["td"] * (len(rows) - 1), rows, strict=True)
    )
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def page(title: str, results: Sequence[CaseScores], protocol: Protocol, figures: Mapping[str, bytes]) -> str:
    """The report.

    Args:
        title: of the page.
        results: scores of every case.
        protocol: by which they were scored.
        figures: caption -> PNG.
    """
    summary = [["organ", "measure", "mean", "std", "median", "95 % interval of the mean"]]
    for row in summarise(results):
        percent = [f"{100 * row[key]:.2f}" for key in ("mean", "std", "median")]
        summary.append([row["organ"], row["measure"], *percent, f"{100 * row['low']:.2f} .. {100 * row['high']:.2f}"])
    cases = [["case", *(f"{organ.key} {measure}" for organ in ORGANS for measure in ("DSC", "NSD"))]]
    for case in results:
        scores = [case.scores[organ] for organ in ORGANS]
        name = case.name + (" (no prediction)" if case.missing else "")
        cases.append([name, *(f"{100 * v:.1f}" for s in scores for v in (s.dice, s.surface_dice))])
    tolerances = ", ".join(f"{organ.key} {protocol.tolerance_mm[organ]:g} mm" for organ in ORGANS)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">{len(results)} cases; percent; NSD tolerances: {tolerances} ({protocol.name}).</p>',
        html_table(summary),
    ]
    for caption, png in figures.items():
        encoded = base64.b64encode(png).decode()
        alt = html.escape(caption)
        parts.append(f'<h2>{alt}</h2><img alt="{alt}" src="data:image/png;base64,{encoded}">')
    parts += ["<h2>Every case</h2>", html_table(cases)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
