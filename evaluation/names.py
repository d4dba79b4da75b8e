"""Which files belong to one case, by their names."""

from __future__ import annotations

import pathlib
import unicodedata

from app.volumes.nifti import extension_of

CHANNEL = "_0000"  # the number of the first channel, which nnU-Net and FLARE add to a scan's name


class NameClashError(Exception):
    """Two files of one folder have the name of one case."""


def case_name(text: str) -> str:
    """A case's name in the form in which names are compared and printed.

    macOS decomposes letters with accents, others do not. Bytes that are not UTF-8 become a backslash and their number.
    """
    printable = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", printable)


def masks_by_case(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The NIfTI files of a folder under their names without extension, in order of name.

    Raises:
        NameClashError: two of them differ in nothing but the extension or the form of a letter.
        OSError: the folder cannot be read.
    """
    return _by_case(folder, channel="")


def scans_by_case(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The same for scans, whose names may end with `_0000`; where any does, the other files of the folder are no scans.

    Raises:
        NameClashError: as above.
        OSError: as above.
    """
    return _by_case(folder, CHANNEL) or _by_case(folder, channel="")


def _by_case(folder: pathlib.Path, channel: str) -> dict[str, pathlib.Path]:
    cases: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        extension = extension_of(path)
        stem = case_name(path.name[: len(path.name) - len(extension or "")])
        if extension is None or path.is_dir() or not stem.endswith(channel):
            continue
        name = stem.removesuffix(channel)
        if name in cases:
            raise NameClashError(f"{folder}: {cases[name].name} and {path.name} are one case; remove or rename one")
        cases[name] = path
    return dict(sorted(cases.items()))
