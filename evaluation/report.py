"""One self-contained HTML page: the tables and the figures of an evaluation."""

from __future__ import annotations

import base64
import io
import pathlib
from collections.abc import Mapping, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from evaluation.accuracy import CaseScores
from evaluation.metrics import Protocol
from evaluation.summary import summarise

TEMPLATES = Environment(
    loader=FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def png_bytes(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def page(title: str, results: Sequence[CaseScores], protocol: Protocol, figures: Mapping[str, bytes]) -> str:
    """The report.

    Args:
        title: of the page.
        results: scores of every case.
        protocol: by which they were scored.
        figures: caption -> PNG.
    """
    return TEMPLATES.get_template("report.html").render(
        title=title,
        results=results,
        protocol=protocol,
        summary=summarise(results),
        figures={caption: base64.b64encode(png).decode() for caption, png in figures.items()},
    )
