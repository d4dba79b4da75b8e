"""Numbers of every organ: a JSON file per case, and one table for the folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultError
from ..inference.gathering import Gathering
from ..organs import ORGANS, Organ, bounding_box
from ..ownership import HEAD_BYTES, has_mark
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.walk import first_bytes
from ..whole_file import printable
from .kidneys import Midline, find_midline
from .result import MARK, PROGRAM, Result, beside, write_whole

DIGEST = "digest"  # column of the table
EXTENSION, TABLE = ".statistics.json", "statistics.csv"
PERCENTILES = (5, 50, 95)
HU_NAMES = ("mean_hu", "sd_hu", *(f"p{p:02d}_hu" if p != 50 else "median_hu" for p in PERCENTILES))
# First and last slice, row and column of a scan in LPS order.
SIDES = (("inferior", "superior"), ("anterior", "posterior"), ("right", "left"))

Labels = NDArray[np.uint8]
Row = dict[str, Any]
Box = tuple[slice, ...]  # slices, rows and columns


class Statistics(Result):
    """X.statistics.json, and statistics.csv for the folder.

    Per organ, and for either kidney: `volume_ml`, `voxels`; `mean_hu`, `sd_hu`, `median_hu`, `p05_hu` and `p95_hu`;
    `box_ras_mm` (two corners, of the outermost voxels' centres) and `centre_ras_mm` (of gravity), both in patient RAS;
    `touches_border` (sides of the scan that it reaches, where it may be cut off). Per organ also `components_removed`
    (pieces left out because they were not the largest) and `confidence` (see docs/OUTPUTS.md). For the case
    `liver_minus_spleen_hu`, the difference of the means, and `check`, organs that should be looked at. null where an
    organ is missing.
    """

    needs_scan = True
    folder_files = (TABLE,)

    def __init__(self) -> None:
        self._table: tuple[object, dict[tuple[str, str], dict[str, str]]] = (None, {})  # as it was read last

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Beside the mask."""
        return beside(base, EXTENSION)

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the JSON file; see `Result.write`."""
        row = statistics(segmentation)
        about = {"program": row.pop("program"), "digest": MARK}
        write_whole(path, (json.dumps(about | row, indent=1, allow_nan=False) + "\n").encode())

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether a case's statistics may be replaced; see `Result.wrote`.

        Raises:
            ResultError: somebody edited rows of the case in the table, which would be lost.
        """
        if not super().wrote(path):
            return False
        table = next((folder / TABLE for folder in path.parents if (folder / TABLE).is_file()), None)
        if table and has_mark(first_bytes(path)) and self._is_edited(table, path):
            raise ResultError(f"{table}: the rows of {path} were edited; move the table, or it loses them")
        return True

    def _is_edited(self, table: pathlib.Path, path: pathlib.Path) -> bool:
        """Whether somebody edited a case's rows in a table."""
        try:
            written = table.stat().st_mtime_ns
            is_older = written < path.stat().st_mtime_ns
            if self._table[0] != (table, written):
                with table.open(newline="", encoding="utf-8") as stream:
                    rows = {(row.get("case", ""), row.get("organ", "")): row for row in csv.DictReader(stream)}
                self._table = (table, written), rows
        except (OSError, UnicodeDecodeError, csv.Error):
            return False  # `finish` will say so
        for row in _rows(read(path)):
            there = self._table[1].get((row["case"], row["organ"]), {})
            if DIGEST in there:
                is_edited = there[DIGEST] != _digest(there)
            else:  # by 0.8.0 or earlier
                is_edited = any(there[name] != _cell(value) for name, value in row.items() if name in there)
                is_edited &= not is_older
            if is_edited:
                return True
        return False

    def has_end(self, path: pathlib.Path) -> bool:
        """Whether a file is whole JSON; see `Result.has_end`."""
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError):
            return False
        return True

    def finish(self, output: pathlib.Path) -> None:
        """Write the table of all cases in the folder, those of earlier runs too; see `Result.finish`."""
        files = {path: found for path in sorted(output.rglob(f"[!.]*{EXTENSION}")) if (found := read(path))}
        rows = [row for case in files.values() for row in _rows(case)]
        if rows:
            table = io.StringIO(newline="")
            rows = [row | {DIGEST: _digest({name: _cell(value) for name, value in row.items()})} for row in rows]
            columns = [*dict.fromkeys(name for row in rows for name in row if name != DIGEST), DIGEST]
            writer = csv.DictWriter(table, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_whole(
                output / TABLE, table.getvalue().encode(), lambda path: _is_as_written(path, table.getvalue(), files)
            )


def _is_as_written(path: pathlib.Path, table: str, files: Mapping[pathlib.Path, Row]) -> bool:
    """Whether a table holds nothing but what the cases' statistics held when it was written.

    Each row has a digest of its other cells, so that no clock decides: that may be set back, and copies of a folder
    have times of their own. Tables of 0.8.0 and earlier have none. There, a row may differ from the new table's if its
    case was done since, and may be left over if its case's file is gone; another difference is somebody's work.
    """
    try:
        with path.open("rb") as raw:
            if not any(raw.read(HEAD_BYTES)):
                return True  # empty or zeros, as a crash may leave it
        with path.open(newline="", encoding="utf-8") as stream:
            there = csv.DictReader(stream)
            rows, columns = list(there), there.fieldnames or []
        new = csv.DictReader(io.StringIO(table, newline=""))
        now = {(row["case"], row["organ"]): row for row in new}
        written = path.stat().st_mtime
        since = {printable(case["case"]) for file, case in files.items() if file.stat().st_mtime >= written}
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    if list(columns[:3]) != ["case", "organ", "volume_ml"] or not set(columns) <= set(new.fieldnames or []):
        return False
    if DIGEST in columns:
        return all(row[DIGEST] == _digest(row) for row in rows)
    known = [(row, now[row["case"], row["organ"]]) for row in rows if (row["case"], row["organ"]) in now]
    return all(row["case"] in since or row.items() <= same.items() for row, same in known)


def read(path: pathlib.Path) -> Row:
    """The content of a case's statistics; empty if this program did not write the file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("program") == PROGRAM else {}


def statistics(segmentation: Segmentation) -> Row:
    """What the JSON file of a case holds."""
    gathering, labels = segmentation.gathering, segmentation.labels_zyx
    if gathering is None:
        raise ResultError(f"{segmentation.case}: statistics need the scan's values, which were not gathered")
    organs: dict[str, Row] = {}
    boxes = organ_boxes(labels, segmentation.organs)
    for organ, box in boxes.items():
        organs[organ.key] = _region(labels, organ, box, gathering) | {
            "components_removed": len(segmentation.removed(organ)),
            "confidence": _rounded(segmentation.confidence.get(organ), 4),
        }
    kidneys, midline = _either_kidney(segmentation, gathering, boxes.get(Organ.KIDNEYS))
    liver, spleen = [organs.get(organ.key, {}).get("mean_hu") for organ in (Organ.LIVER, Organ.SPLEEN)]
    return {
        "program": PROGRAM,
        "version": __version__,
        "model": segmentation.model.name,
        "model_version": segmentation.model.version,
        "case": segmentation.case,
        "orientation_known": segmentation.volume.geometry.orientation_known,
        "organs": organs,
        "kidneys": kidneys if Organ.KIDNEYS in boxes else {},
        "kidneys_told_apart_by": midline.by,
        "liver_minus_spleen_hu": None if liver is None or spleen is None else round(liver - spleen, 1),
        "check": [organ.key for organ in segmentation.check],
        "warnings": [*segmentation.warnings, *midline.warnings],
    }


def organ_boxes(labels_zyx: Labels, organs: Sequence[Organ] = ORGANS) -> dict[Organ, Box | None]:
    """Slices, rows and columns between which every organ lies; None for one that is missing."""
    lines = {organ: [np.zeros(n, bool) for n in labels_zyx.shape] for organ in organs}
    for z, plane in enumerate(labels_zyx):
        if plane.any():
            for organ, (slices, rows, columns) in lines.items():
                inside = plane == organ
                rows |= inside.any(1)
                columns |= inside.any(0)
                slices[z] = inside.any()
    return {organ: _span(*parts) for organ, parts in lines.items()}


def _span(*lines: NDArray[np.bool_]) -> Box | None:
    """From the first to the last that is true on each line."""
    ends = [np.flatnonzero(line)[[0, -1]] for line in lines if line.any()]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends) if len(ends) == len(lines) else None


def _region(
    labels: Labels, organ: Organ, box: Box | None, gathering: Gathering, columns: tuple[int, int] | None = None
) -> Row:
    """Numbers of an organ inside its box, or of its part between two columns."""
    geometry = gathering.geometry
    if box is not None and columns is not None:
        part = slice(max(box[2].start, columns[0]), min(box[2].stop, columns[1]))
        box = _tightened(labels, organ, (*box[:2], part))
    if box is None:
        empty = _numbers(0, np.empty(0, np.int16), gathering)
        return empty | {"box_ras_mm": None, "centre_ras_mm": None, "touches_border": []}
    inside = labels[box] == organ
    counts = [inside.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    starts = [part.start for part in box]
    centre = [start + float(np.average(np.arange(len(n)), weights=n)) for start, n in zip(starts, counts, strict=True)]
    corners = np.array([[*starts[::-1], 1], [*(part.stop - 1 for part in box[::-1]), 1]])
    ends = np.sort((corners @ geometry.oriented_affine.T)[:, :3], axis=0)
    touches = [
        side
        for part, n, sides in zip(box, labels.shape, SIDES, strict=True)
        for side, is_there in zip(sides, (part.start == 0, part.stop == n), strict=True)
        if is_there
    ]
    return _numbers(int(inside.sum()), gathering.hounsfield(labels, organ, columns), gathering) | {
        "box_ras_mm": ends.round(2).tolist(),
        "centre_ras_mm": (geometry.oriented_affine @ [*centre[::-1], 1])[:3].round(2).tolist(),
        "touches_border": touches,
    }


def _tightened(labels: Labels, organ: Organ, box: Box) -> Box | None:
    """The part of a box between whose slices, rows and columns an organ lies."""
    span = bounding_box(labels[box] == organ)
    if span is None:
        return None
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, span, strict=True))
    return z, y, x


def _numbers(voxels: int, hounsfield: NDArray[np.int16], gathering: Gathering) -> Row:
    row: Row = {"volume_ml": round(voxels * gathering.geometry.voxel_ml, 2), "voxels": voxels}
    if not len(hounsfield):
        return row | dict.fromkeys(HU_NAMES)
    values = hounsfield.astype(np.float64)
    figures = [values.mean(), values.std(), *np.percentile(values, PERCENTILES)]
    return row | {name: round(float(figure), 1) for name, figure in zip(HU_NAMES, figures, strict=True)}


def _either_kidney(segmentation: Segmentation, gathering: Gathering, box: Box | None) -> tuple[dict[str, Row], Midline]:
    """The numbers of either kidney, and where the plane between them lies; a horseshoe kidney is cut there."""
    midline, first_left, width = Midline(), 0, gathering.geometry.shape_zyx[2]
    if box is not None:
        midline = _midline(segmentation)
        if midline.by is None:
            return {"left": _unknown(), "right": _unknown()}, midline
        first_left = int(np.clip(np.ceil(gathering.column_of(midline.column)), 0, width))
    sides = {"left": (first_left, width), "right": (0, first_left)}  # columns grow to the patient's left
    labels = segmentation.labels_zyx
    return {side: _region(labels, Organ.KIDNEYS, box, gathering, part) for side, part in sides.items()}, midline


def _midline(segmentation: Segmentation) -> Midline:
    if not segmentation.volume.geometry.orientation_known:
        return Midline(problem="the scan's orientation is not known")
    small = segmentation.small
    return Midline(problem="they are too small") if small is None else find_midline(small)


def _unknown() -> Row:
    """The numbers of a region of which it is not known where it ends."""
    return dict.fromkeys(("volume_ml", "voxels", *HU_NAMES, "box_ras_mm", "centre_ras_mm")) | {"touches_border": []}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _regions(case: Row) -> Iterator[tuple[str, Row]]:
    """Every organ, then either kidney, of a case's statistics."""
    yield from case["organs"].items()
    yield from ((f"{side} kidney", row) for side, row in case["kidneys"].items())


def _rows(case: Row) -> Iterator[Row]:
    """The rows of a case in the table; none of an empty case."""
    for name, row in _regions(case) if case else ():
        yield {"case": printable(case["case"]), "organ": name, **_flat(row)}


def _cell(value: object) -> str:
    """A value as the table has it."""
    return "" if value is None else str(value)


def _digest(cells: Mapping[str, str | None]) -> str:
    """A digest of a row's cells, but for the digest itself and empty ones, in whatever order the columns are."""
    told = sorted((str(name), str(cell)) for name, cell in cells.items() if cell and name != DIGEST)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def _flat(row: Mapping[str, Any]) -> Row:
    """One row of the table: a column per number."""
    flat: Row = {}
    for name, value in row.items():
        if name == "touches_border":
            flat[name] = " ".join(value)
        elif name == "centre_ras_mm":
            flat |= {f"centre_{axis}_mm": part for axis, part in zip("ras", value or (None,) * 3, strict=True)}
        elif name == "box_ras_mm":
            ends: Sequence[Sequence[float | None]] = value or ((None,) * 3,) * 2
            for end, corner in zip(("min", "max"), ends, strict=True):
                flat |= {f"{end}_{axis}_mm": part for axis, part in zip("ras", corner, strict=True)}
        else:
            flat[name] = value
    return flat
