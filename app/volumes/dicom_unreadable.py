"""Files that cannot be read: whether they are meant to be slices, and of which series.

What cannot be read says nothing of itself but its name and its folder. So a stray README fails no series, and a slice
does whatever happened to it: a dead link, no permission, 0 bytes, zeros, a header that ends early.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from .dicom import EXTENSIONS
from .dicom_slice import Slice


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read as a CT slice.

    Attributes:
        path: the file.
        reason: a few words.
        is_dicom: whether its first bytes are DICOM's.
        series: the UID of the series that it names; None where it names none.
    """

    path: pathlib.Path
    reason: str
    is_dicom: bool
    series: str | None


def may_belong(one: Unreadable, slices: Sequence[Slice]) -> bool:
    """Whether a file lies in the folder of some slices, under a name of the same kind.

    Names are of one kind if they have the same extension, or none and a digit; and begin with the same letters, if all
    slices there do: `IM0012` and `IM0013`, `CT.1.dcm` and `CT.2.dcm`, but not `README` nor `RS.1.dcm`. Frames of a
    multi-frame file lack no other file.
    """
    beside = {file.path.name for file in slices if file.path.parent == one.path.parent and file.frame is None}
    if _ending(one.path.name) not in {_ending(name) for name in beside}:
        return False
    letters = {_first_letters(name) for name in beside}
    return len(letters) > 1 or _first_letters(one.path.name) in letters


def is_meant(one: Unreadable, beside: Sequence[Unreadable]) -> bool:
    """Whether a file is meant to be DICOM, given all unreadable ones of its folder, where no slice tells.

    It begins as DICOM does, or is called so; or it is one of several files whose names have a digit and no extension.
    """
    if one.is_dicom or one.path.suffix.lower() in EXTENSIONS:
        return True
    numbered = ("", True)
    return _ending(one.path.name) == numbered and sum(_ending(file.path.name) == numbered for file in beside) > 1


def _ending(name: str) -> tuple[str, bool]:
    """The extension, which begins with a letter; and for names without one whether they have a digit."""
    extension = pathlib.PurePath(name).suffix.lower()
    if extension[1:2].isalpha():
        return extension, True
    return "", any(letter.isdigit() for letter in name)


def _first_letters(name: str) -> str:
    """What stands before the first digit or dot."""
    letters = ""
    for letter in name:
        if letter.isdigit() or letter == ".":
            break
        letters += letter
    return letters.casefold()
