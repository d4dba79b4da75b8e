"""The mask with the names of its labels: inside the file, and as tables for ITK-SNAP and 3D Slicer beside it."""

from __future__ import annotations

import json
import pathlib
from functools import partial
from typing import Literal
from xml.etree import ElementTree

from .. import ownership
from ..organs import ORGANS, Organ
from ..volumes.nifti_header import Header
from .nifti_mask import NiftiMask
from .result import MARK, PROGRAM, each_by_itself, write_whole

LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL, nifti1.h
CARET = 30  # NIFTI_ECODE_CARET, nifti1.h: an XML label table, as Connectome Workbench and MITK read it


class NamedMask(NiftiMask):
    """X.nii.gz with intent code 1002 and a label table in its header extension; and three tables for the folder.

    `labels.json`, `labels.itksnap.txt` (ITK-SNAP: Import Label Descriptions) and `labels.ctbl` (3D Slicer: a color
    table).
    """

    folder_files = ("labels.json", "labels.itksnap.txt", "labels.ctbl")

    def header(self, header: Header) -> tuple[Header, bytes]:
        """The mask's header and extension; see `NiftiMask.header`."""
        header["intent_code"], header["intent_name"] = LABEL_INTENT, b"abdominal organs"
        table = caret_table()
        size = 8 + len(table) + -(8 + len(table)) % 16  # nifti1.h: with its own two numbers, a multiple of 16
        order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
        header["vox_offset"] += size
        numbers = size.to_bytes(4, order) + CARET.to_bytes(4, order)
        return header, bytes([1, 0, 0, 0]) + (numbers + table).ljust(size, b"\0")

    def finish(self, output: pathlib.Path) -> None:
        """Write the tables; see `Result.finish`."""
        tables = json.dumps(json_table(), indent=1) + "\n", itk_snap_table(), slicer_table()
        paths = [output / name for name in self.folder_files]
        each_by_itself(
            (path, partial(write_whole, path, text.encode(), ownership.wrote))
            for path, text in zip(paths, tables, strict=True)
        )


def caret_table() -> bytes:
    """The table as Caret's XML."""
    root = ElementTree.Element("CaretExtension")
    information = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(information, "LabelTable")
    for organ in Organ:
        red, green, blue = (f"{value / 255:.4f}" for value in organ.rgb)
        attributes = {"Key": str(int(organ)), "Red": red, "Green": green, "Blue": blue, "Alpha": "1" if organ else "0"}
        label = ElementTree.SubElement(table, "Label", attributes)
        label.text = organ.key
    for tag, text in (("StudyMetaDataLinkSet", ""), ("VolumeType", "Label")):
        ElementTree.SubElement(information, tag).text = text
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def json_table() -> dict[str, object]:
    """Value, name, colour and SNOMED CT code of every label."""
    labels = [
        {"value": int(organ), "name": organ.key, "rgb": list(organ.rgb), "snomed_ct": organ.snomed} for organ in ORGANS
    ]
    return {"program": PROGRAM, "digest": MARK, "labels": labels}


def itk_snap_table() -> str:
    """Index, red, green, blue, alpha, visible, mesh visible, name."""
    rows = [f"# {PROGRAM} {MARK}", '    0     0    0    0        0  0  0    "Clear Label"']
    for organ in ORGANS:
        red, green, blue = organ.rgb
        rows.append(f'{int(organ):5} {red:5} {green:4} {blue:4}        1  1  1    "{organ.key}"')
    return "\n".join(rows) + "\n"


def slicer_table() -> str:
    """Value, name, red, green, blue, alpha."""
    rows = [f"# Color table file, {PROGRAM} {MARK}", "0 background 0 0 0 0"]
    rows += [f"{int(organ)} {organ.key} {' '.join(map(str, organ.rgb))} 255" for organ in ORGANS]
    return "\n".join(rows) + "\n"
