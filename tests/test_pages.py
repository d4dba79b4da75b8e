"""The text of pages: whatever a case is called and whatever a message says, it stays text."""

from __future__ import annotations

import html
import json
import pathlib
import re
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes

import nibabel as nib
import numpy as np
import pytest

from app.organs import ORGANS
from app.results import viewer
from app.run_log import CaseRecord, append
from app.volumes import open_volume
from app.whole_file import printable
from phantom import write_phantom
from tests.test_statistics import gathered
from tests.tiny import segmentation_of

NASTY = [
    "plain",
    "<script>alert(1)</script>",
    "a & b <i>\"'",
    "{{ 7 * 7 }} {% raw %}",
    "\udcff\udc80 not UTF-8",
    "Müller 山田",
    "line\nfeed\x07",
    "</script><!-- @DATA@ @ROWS@",
]


class Reader(HTMLParser):
    """Tags, links and cells of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def read(page: str) -> Reader:
    page.encode()  # it can be written
    reader = Reader()
    reader.feed(page)
    return reader


@pytest.mark.parametrize("text", NASTY)
def test_the_index_shows_names_and_messages_as_text(tmp_path: pathlib.Path, text: str) -> None:
    name = text.replace("/", "_")
    for extension in (".viewer.html", ".preview.png"):
        (tmp_path / (name + extension)).touch()
    append(tmp_path, CaseRecord(name, warnings=[text, "second"], volumes_ml={"liver": 1234.6, "spleen": 0.0}))
    append(tmp_path, CaseRecord("zz", "failed", text, warnings=["third"], volumes_ml={"liver": 7.0}))
    index = read(viewer.index_page(tmp_path))
    assert [index.tags.count(tag) for tag in ("script", "img", "a", "br", "i")] == [1, 1, 1, 2, 0]
    shown = printable(name)
    done, failed = sorted(index.rows[1:], key=lambda row: row[1])
    assert done[0].strip() == shown
    assert done[1:-1] == ["done", *({"liver": "1235", "spleen": "0"}.get(organ.key, "") for organ in ORGANS)]
    assert done[-1] == printable(text) + "second"
    assert failed[1] == "failed"
    assert failed[2] == "7"
    assert failed[-1].strip() == printable(text) + "third"
    page, picture = (unquote_to_bytes(link) for link in index.links)
    assert {page, picture} == {path.name.encode(errors="surrogateescape") for path in tmp_path.glob("*.[hp]*")}


@pytest.mark.parametrize("text", NASTY)
def test_a_page_holds_its_data_and_no_markup_of_a_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(viewer, "LIBRARY", "package.json")  # as long as it is not run, any file will do
    write_phantom(tmp_path / "x_0000.nii.gz", tmp_path / "x.nii.gz", (60, 54, 14), (6.0, 6.0, 18.0))
    volume, mask = open_volume(tmp_path / "x_0000.nii.gz"), np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj)
    gathering = gathered(volume, volume.geometry.orient(mask))
    page = viewer.page(segmentation_of(volume, mask, text, gathering=gathering, intensity_doubt=text))
    assert read(page).tags.count("script") == 2
    title = re.search("<title>(.*?)</title>", page, re.DOTALL)
    assert title is not None
    assert html.unescape(title[1]) == printable(text)
    data = re.search("^const DATA = (.*);$", page, re.MULTILINE)
    assert data is not None
    found = json.loads(data[1])
    assert found["case"] == printable(text)
    assert found["warnings"][0] == text
    assert [row["name"] for row in found["organs"]] == [organ.key for organ in ORGANS]
    assert page.endswith("</html>\n")
