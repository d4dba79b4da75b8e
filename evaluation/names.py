"""Which files belong to one case, by their names."""

from __future__ import annotations

import pathlib
import unicodedata

from app.volumes.nifti import CHANNEL, extension_of


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
        NamesError: there are no scans, one has no label, or two are one case.
        OSError: a folder cannot be read.
    """
    images, labels = folder / "imagesTr", folder / "labelsTr"
    scans = scans_by_case(images) if images.is_dir() else {}
    masks = masks_by_case(labels) if labels.is_dir() else {}
    if not scans:
        raise NamesError(f"{folder}: no imagesTr/*_0000.nii.gz; expected the FLARE / nnU-Net layout")
    if missing := [name for name in scans if name not in masks]:
        raise NamesError(f"{labels / missing[0]}.nii.gz: no label for case {missing[0]}; add it or remove the image")
    return [(name, image, masks[name]) for name, image in scans.items()]


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
