"""What the name of a file that cannot be read says: whether it is meant to be a slice, and beside which others.

What cannot be read says nothing of itself but its name and its folder. So a stray README fails no series, and a slice
does whatever happened to it: a dead link, no permission, 0 bytes, zeros, a header that ends early, or the text that a
server or git-annex put in its place.
"""

from __future__ import annotations

import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

EXTENSIONS = (".dcm", ".dicom", ".ima")


class NamesByFolder:
    """The names of some slices, to compare others with.

    Names are of one kind if they have the same extension, or none and a digit; and begin with the same letters, if all
    slices of the folder do: `IM0012` and `IM0013`, `CT.1.dcm` and `CT.2.dcm`, but not `README` nor `RS.1.dcm`.
    """

    def __init__(self, slices: Iterable[pathlib.Path]) -> None:
        self._endings: dict[pathlib.Path, set[tuple[str, bool]]] = defaultdict(set)
        self._letters: dict[pathlib.Path, set[str]] = defaultdict(set)
        for path in slices:
            self._endings[path.parent].add(_ending(path.name))
            self._letters[path.parent].add(_first_letters(path.name))

    def are_like(self, path: pathlib.Path, is_foreign: bool) -> bool:
        """Whether a file lies beside slices under a name of their kind.

        Args:
            path: of the file.
            is_foreign: it has other content, and so must begin with the letters of some slice, or have DICOM's
                extension.
        """
        letters = self._letters.get(path.parent, set())
        is_any = len(letters) > 1 and (not is_foreign or path.suffix.lower() in EXTENSIONS)
        return _ending(path.name) in self._endings.get(path.parent, ()) and (
            is_any or _first_letters(path.name) in letters
        )


def is_meant(path: pathlib.Path, beside: Sequence[pathlib.Path]) -> bool:
    """Whether a file is called as DICOM is, where no slice lies beside it.

    Its name has DICOM's extension; or a digit and no extension, and it is one of several such files in its folder.
    """
    if path.suffix.lower() in EXTENSIONS:
        return True
    alike = (one for one in beside if one.parent == path.parent and one != path and is_numbered(one.name))
    return is_numbered(path.name) and any(alike)


def is_numbered(name: str) -> bool:
    """Whether a name has a digit and no extension, as slices are called that have none."""
    return _ending(name) == ("", True)


def _ending(name: str) -> tuple[str, bool]:
    """The extension, which begins with a letter (or is `.7z`); and for names without one whether they have a digit."""
    extension = pathlib.PurePath(name).suffix.lower()
    if extension[1:2].isalpha() or extension == ".7z":
        return extension, True
    return "", any(letter.isdigit() for letter in name)


def _first_letters(name: str) -> str:
    """What stands before the first digit or dot."""
    ends = [i for i, letter in enumerate(name) if letter.isdigit() or letter == "."]
    return name[: ends[0] if ends else None].casefold()
