"""One picture of a case: three planes through its organs with their outlines and volumes, and a row of slices."""

from __future__ import annotations

import io
import pathlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ..errors import ResultError
from ..hounsfield import WINDOW
from ..inference.gathering import Reduced
from ..organs import ORGANS, Organ
from ..ownership import mark_of
from ..segmentation import Segmentation
from ..whole_file import printable
from .outlines import rings
from .planes import around_organs, best_plane
from .result import PROGRAM, Result, beside, write_whole

EXTENSION = ".preview.png"
WIDTH = 1000  # pixels
GAP, LINE, FONT = 8, 26, 17  # pixels: between panels, height of a line of text, of a letter
SLICES = 6  # in the lower row
INK, PAPER = (235, 235, 235), (0, 0, 0)
PNG_BEGINS, PNG_ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # PNG specification, 5.2 and 11.2.4
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
FINER = 2  # outlines are drawn this many times larger and shrunk, which smooths them


class Preview(Result):
    """X.preview.png: axial, coronal and sagittal plane, a legend with volumes, and six axial slices."""

    needs_scan = True

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Beside the mask."""
        return beside(base, EXTENSION)

    def looks_whole(self, path: pathlib.Path) -> bool:
        """Whether a picture is not cut; see `Result.looks_whole`."""
        content = path.read_bytes()
        begins = content[: len(PNG_BEGINS)] == PNG_BEGINS[: len(content)]
        return any(content) and (content.endswith(PNG_ENDS) or not begins)

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether a picture may be replaced; see `Result.wrote`."""
        if not self.is_whole(path):
            return True
        try:
            with Image.open(path) as image:
                about = image.info
                is_unchanged = about.get("Digest", "") in ("", mark_of([image.tobytes()]).decode())
        except (OSError, UnidentifiedImageError, SyntaxError):
            return False
        return about.get("Software") == PROGRAM and is_unchanged

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the picture; see `Result.write`."""
        picture, about, content = preview(segmentation), PngInfo(), io.BytesIO()
        about.add_text("Software", PROGRAM)
        about.add_text("Digest", mark_of([picture.tobytes()]))
        picture.save(content, "PNG", pnginfo=about)
        write_whole(path, content.getvalue())


@dataclass(frozen=True)
class Plane:
    """A plane through the scan.

    Attributes:
        hounsfield: (rows, columns).
        labels: likewise.
        size_mm: height and width.
        letters: of the patient's direction at its left and upper side; empty where that is not known.
    """

    hounsfield: NDArray[np.int16]
    labels: NDArray[np.uint8]
    size_mm: tuple[float, float]
    letters: tuple[str, str]


def preview(segmentation: Segmentation) -> Image.Image:
    """The picture of a case; a few words where no organ was found."""
    if segmentation.gathering is None:
        raise ResultError(f"{segmentation.case}: a preview needs the scan's values, which were not gathered")
    small = segmentation.small
    rows = [] if small is None else _rows(small, segmentation.volume.geometry.orientation_known)
    font = ImageFont.load_default(FONT)
    legend = _legend(segmentation, font)
    page = Image.new("RGB", (WIDTH, sum(row.height + GAP for row in rows) + (1 + len(legend)) * LINE + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), printable(segmentation.case), INK, font)
    note = "research use, not for diagnosis"
    draw.text((WIDTH - GAP - draw.textlength(note, font), GAP), note, (150, 150, 150), font)
    y = GAP + LINE
    for row in rows:
        page.paste(row, (0, y))
        y += row.height + GAP
    for line in legend:
        for x, organ, text in line:
            draw.rectangle((x, y + 4, x + 14, y + 18), organ.rgb)
            draw.text((x + 22, y), text, INK, font)
        y += LINE
    return page


def _legend(segmentation: Segmentation, font: Font) -> list[list[tuple[float, Organ, str]]]:
    """Lines of the legend: where each organ's colour begins, and the words beside it."""
    lines: list[list[tuple[float, Organ, str]]] = [[]]
    x = float(GAP)
    for organ, millilitres in segmentation.volumes_ml.items():
        found = f"{millilitres:.0f} ml" if millilitres else "not found"
        text = f"{organ.key} {found}" + (", check" if organ in segmentation.check else "")
        width = 22 + font.getlength(text)
        if lines[-1] and x + width > WIDTH - GAP:
            lines.append([])
            x = float(GAP)
        lines[-1].append((x, organ, text))
        x += width + 30
    return lines


def _rows(small: Reduced, orientation_known: bool) -> list[Image.Image]:
    """The row of planes and the row of slices, as wide as the page."""
    box = around_organs(small.labels, small.spacing_zyx_mm)
    hounsfield, labels = small.hounsfield[box], small.labels[box]
    depth, height, width = (n * mm for n, mm in zip(labels.shape, small.spacing_zyx_mm, strict=True))

    right, anterior, superior = "RAS" if orientation_known else ("", "", "")

    def axial(z: int) -> Plane:
        return Plane(hounsfield[z], labels[z], (height, width), (right, anterior))

    y, x = best_plane(labels, 1), best_plane(labels, 2)
    # Slices count from the feet, pictures from the top.
    coronal = Plane(hounsfield[::-1, y], labels[::-1, y], (depth, width), (right, superior))
    sagittal = Plane(hounsfield[::-1, :, x], labels[::-1, :, x], (depth, height), (anterior, superior))
    with_organs = np.flatnonzero(labels.any((1, 2)))
    places = with_organs[np.linspace(0, len(with_organs) - 1, SLICES + 2).round().astype(int)[1:-1]]
    return [_row([axial(best_plane(labels, 0)), coronal, sagittal]), _row([axial(int(z)) for z in places])]


def _row(planes: list[Plane]) -> Image.Image:
    """Planes side by side at one height, together as wide as the page."""
    ratios = [plane.size_mm[1] / plane.size_mm[0] for plane in planes]
    height = round((WIDTH - GAP * (len(planes) + 1)) / sum(ratios))
    row = Image.new("RGB", (WIDTH, height), PAPER)
    x = float(GAP)
    for plane, ratio in zip(planes, ratios, strict=True):
        row.paste(_panel(plane, (round(height * ratio), height)), (round(x), 0))
        x += height * ratio + GAP
    return row


def _panel(plane: Plane, size: tuple[int, int]) -> Image.Image:
    """A plane in grey with the outlines of its organs, and the patient's directions."""
    low, high = WINDOW
    grey = np.clip((plane.hounsfield.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    finer = (size[0] * FINER, size[1] * FINER)
    image = Image.fromarray(grey).resize(finer, Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(image)
    for organ in ORGANS:
        inside = plane.labels == organ
        if not inside.any():
            continue
        # Interpolated first: outlines of the small copy's own pixels would be stairs.
        level = Image.fromarray(inside.astype(np.float32)).resize(finer, Image.Resampling.BILINEAR)
        for area in rings(np.asarray(level).T.astype(np.float64)):
            for ring in area:
                draw.line([(float(x), float(y)) for x, y in ring], organ.rgb, 2 * FINER, joint="curve")
    panel = image.resize(size, Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(FONT)
    left, up = plane.letters
    for letter, place, anchor in ((left, (5, size[1] / 2), "lm"), (up, (size[0] / 2, 3), "ma")):
        draw.text(place, letter, INK, font, anchor=anchor, stroke_width=2, stroke_fill=PAPER)
    return panel
