"""Which files belong to one case, by their names."""

from __future__ import annotations

import json
import logging
import pathlib
import unicodedata
from collections.abc import Iterator

from app.organs import ORGANS
from app.volumes.nifti import CHANNEL, extension_of

log = logging.getLogger(__name__)

DESCRIPTION = "dataset.json"  # of a folder in nnU-Net's layout, with the names of its labels


class NamesError(Exception):
    """Files cannot be matched by their names; the message says which and what to do."""


Labelled = tuple[str, pathlib.Path, pathlib.Path]  # case, scan, label


def case_name(text: str) -> str:
    """A case's name in the form in which names are compared and printed.

    macOS decomposes letters with accents, others do not. Bytes that are not UTF-8 become a backslash and their number.
    """
    printable = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", printable)


def masks_by_case(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The NIfTI files of a folder under their names without extension, in order of name.

    Raises:
        NamesError: two of them differ in nothing but the extension or the form of a letter.
        OSError: the folder cannot be read.
    """
    return _by_case(folder, channel="")


def scans_by_case(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The same for scans, whose names may end with `_0000`; where any does, the folder's other files are not scans.

    Raises:
        NamesError: as above.
        OSError: as above.
    """
    return _by_case(folder, CHANNEL) or _by_case(folder, channel="")


def labelled_scans(folder: pathlib.Path) -> list[Labelled]:
    """Every (case, scan, label) of a folder with imagesTr/X_0000.nii.gz and labelsTr/X.nii.gz, or .nii.

    Raises:
        NamesError: there are no scans, one has no label, two are one case, or its labels mean other organs.
        OSError: a folder cannot be read.
    """
    images, labels = folder / "imagesTr", folder / "labelsTr"
    scans = scans_by_case(images) if images.is_dir() else {}
    masks = masks_by_case(labels) if labels.is_dir() else {}
    if not scans:
        raise NamesError(f"{folder}: no imagesTr/*_0000.nii.gz; expected the FLARE / nnU-Net layout")
    if missing := [name for name in scans if name not in masks]:
        raise NamesError(f"{labels / missing[0]}.nii.gz: no label for case {missing[0]}; add it or remove the image")
    if alone := sorted(masks.keys() - scans.keys()):
        log.warning("%s: %d labels have no scan of their name, such as %s; left out", labels, len(alone), alone[0])
    check_meanings(folder)
    return [(name, image, masks[name]) for name, image in scans.items()]


def check_meanings(folder: pathlib.Path) -> None:
    """See that the labels of a data set, or of masks, mean what they mean here, where their folder says what that is.

    Raises:
        NamesError: one has the name of something else.
    """
    description = folder / DESCRIPTION
    names = dict(_label_names(description))
    for organ in ORGANS:
        name = names.get(organ, organ.key)
        if organ.key.removesuffix("s") not in name.lower():
            raise NamesError(
                f"{description}: calls label {organ:d} '{name}', which is {organ.key} here; renumber the labels"
            )


def _label_names(description: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Every label and its name in nnU-Net's description of a data set, of either version; none if that is no such."""
    try:
        labels = json.loads(description.read_bytes())["labels"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    for key, value in labels:
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if isinstance(number, int) or (isinstance(number, str) and number.isdecimal()):  # else a region of several
            yield int(number), name


def _by_case(folder: pathlib.Path, channel: str) -> dict[str, pathlib.Path]:
    cases: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        extension = extension_of(path)
        stem = case_name(path.name[: len(path.name) - len(extension or "")])
        if extension is None or path.is_dir() or not stem.endswith(channel):
            continue
        name = stem.removesuffix(channel)
        if name in cases:
            raise NamesError(f"{folder}: {cases[name].name} and {path.name} are one case; remove or rename one")
        cases[name] = path
    return dict(sorted(cases.items()))
