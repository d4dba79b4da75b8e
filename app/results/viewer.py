"""A page per case that shows scan and organs without a network, and an index page for the folder."""

from __future__ import annotations

import base64
import os
import pathlib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from .. import ownership
from ..errors import InputError, ResultError
from ..inference.gathering import Reduced
from ..organs import ORGANS, Organ
from ..run_log import read_records
from ..segmentation import Segmentation
from ..version import __version__
from ..volumes.nifti import small_nifti
from ..whole_file import printable
from .planes import around_organs
from .preview import EXTENSION as PREVIEW
from .result import MARK, PROGRAM, Result, beside, write_whole
from .statistics import statistics

EXTENSION, INDEX = ".viewer.html", "index.html"
FIRST_LINE = f"<!-- {PROGRAM} {MARK} -->\n"  # first line of every page
LIBRARY = "niivue.umd.js"
LARGEST_BYTES = 5 << 20  # of scan and mask together in base64; beside NiiVue's 2.3 MB the page stays under 8
STEP_HU, LOWEST_HU = 2, -200  # a byte holds -200..310 HU


class Viewer(Result):
    """X.viewer.html for the case; index.html for the folder, with the cases' previews.

    A page holds everything it needs: NiiVue, the scan around the organs at about 1.5 mm, labels, and statistics.

    Raises:
        InputError: NiiVue, which is fetched when the program is built, is not there.
    """

    requires = ("preview",)
    needs_scan = True
    folder_files = (INDEX,)
    ending = b"</html>\n"

    def __init__(self) -> None:
        if not _page(LIBRARY).is_file():
            raise InputError(f"--save viewer needs NiiVue; fetch it once: python {_page('fetch.py')}")

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Beside the mask."""
        return beside(base, EXTENSION)

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the page; see `Result.write`."""
        write_whole(path, (FIRST_LINE + page(segmentation)).encode())

    def finish(self, output: pathlib.Path) -> None:
        """Write the index of all cases in the folder's run log; see `Result.finish`."""
        write_whole(output / INDEX, (FIRST_LINE + index_page(output)).encode(), ownership.wrote)


def _page(name: str) -> Any:  # noqa: ANN401 (importlib's Traversable moved between versions of Python)
    return resources.files(__package__) / "page" / name


def _templates() -> Environment:
    """The pages' templates. Names and messages in them cannot become markup, whatever bytes they have."""
    return Environment(
        loader=PackageLoader(__package__, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup is a str too
    )


def page(segmentation: Segmentation) -> str:
    """The page of a case."""
    if segmentation.gathering is None:
        raise ResultError(f"{segmentation.case}: a viewer needs the scan's values, which were not gathered")
    small = segmentation.small
    if small is None:
        raise ResultError(f"{segmentation.case}: no organ was found, there is nothing to view; save preview or nifti")
    found = statistics(segmentation)
    scan, mask, centre_mm = _volumes(small)
    data = {
        "case": printable(segmentation.case),
        "about": f"{PROGRAM} {__version__}, model {segmentation.model.name} {segmentation.model.version}",
        "warnings": found["warnings"],
        "liver_minus_spleen_hu": found["liver_minus_spleen_hu"],
        "organs": list(_organ_rows(found)),
        "orientation_known": segmentation.volume.geometry.orientation_known,
        "centre_mm": centre_mm,
        "scan": scan,
        "mask": mask,
    }
    return _templates().get_template("viewer.html").render(data=data, niivue=_page(LIBRARY).read_text("utf-8"))


def _organ_rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the page's table shows of every organ."""
    for name, row in found["organs"].items():
        organ = Organ[name.upper()]
        yield {"name": name, "label": int(organ), "colour": organ.rgb, "check": name in found["check"]} | {
            key: row[key] for key in ("volume_ml", "mean_hu", "confidence")
        }


def _volumes(small: Reduced) -> tuple[str, str, list[float]]:
    """Scan and mask as gzipped NIfTI in base64, and the middle of the organs in patient RAS, mm.

    Every second voxel is left out along all axes until both together are small enough.
    """
    box = around_organs(small.labels, small.spacing_zyx_mm)
    step = 1
    while True:
        parts = tuple(slice(part.start or 0, part.stop, step) for part in box)
        hounsfield, labels = small.hounsfield[parts], small.labels[parts]
        starts = [part.start for part in parts[::-1]]
        affine = small.affine @ np.diag([step, step, step, 1.0])
        affine[:, 3] = small.affine @ [*starts, 1.0]
        scan = np.clip((hounsfield.astype(np.int32) - LOWEST_HU) // STEP_HU, 0, 255).astype(np.uint8)
        encoded = [
            base64.b64encode(small_nifti(array.T, affine, slope, intercept)).decode()
            for array, slope, intercept in ((scan, STEP_HU, LOWEST_HU), (labels, 1, 0))
        ]
        if sum(map(len, encoded)) <= LARGEST_BYTES:
            return encoded[0], encoded[1], _middle(labels, affine)
        step += 1


def _middle(labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> list[float]:
    """The voxel with a label that lies nearest to the middle of all."""
    places = np.argwhere(labels)
    nearest = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    middle: list[float] = (affine @ [*nearest[::-1], 1.0])[:3].round(2).tolist()
    return middle


def index_page(output: pathlib.Path) -> str:
    """The table of every case in a run log, with what is to be looked at."""
    latest: dict[str, Mapping[str, Any]] = {}
    for record in read_records(output):
        if not (record.get("status") == "skipped" and record.get("case") in latest):
            latest[str(record.get("case"))] = record
    rows = [_index_row(output, case, record) for case, record in sorted(latest.items())]
    head = ["case", "state", *(f"{organ.key}, ml" for organ in ORGANS), "remarks"]
    return _templates().get_template(INDEX).render(head=head, rows=rows)


def _index_row(output: pathlib.Path, case: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of a case."""

    def link(extension: str) -> str | None:
        """To a file of the case, if it is there; its name's bytes need not be UTF-8."""
        path = output / (case + extension)
        return quote(os.fsencode(case + extension)) if path.exists() else None

    volumes = record.get("volumes_ml") or {}
    return {
        "case": case,
        "page": link(EXTENSION),
        "picture": link(PREVIEW),
        "status": str(record.get("status")),
        "volumes_ml": [volumes.get(organ.key) for organ in ORGANS],
        "remarks": [*([record["error"]] if record.get("error") else []), *(record.get("warnings") or [])],
    }
