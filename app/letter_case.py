"""Names on file systems that take small and capital letters for the same, as those of Windows and macOS do."""

from __future__ import annotations

import pathlib
import tempfile
import unicodedata
from collections.abc import Set

from .volumes import identity


def folded(name: pathlib.Path | str) -> str:
    """A name or path as a file system compares it that takes small and capital letters for the same."""
    return _composed(str(name)).casefold()


def _composed(name: str) -> str:
    """A name in one of its Unicode forms: a file system may list another than it was given."""
    return unicodedata.normalize("NFC", name)


def names_in(folder: pathlib.Path) -> set[str]:
    """The names in a folder; none where it cannot be read, or is not there."""
    try:
        return {_composed(path.name) for path in folder.iterdir()}
    except OSError:
        return set()


def other_name(path: pathlib.Path, names: Set[str]) -> str | None:
    """The name, in other letters, of the file that is found under an output's name; None where it is this one.

    Args:
        path: of the output.
        names: in its folder.
    """
    if _composed(path.name) in names or identity(path) is None:
        return None
    return next((name for name in sorted(names) if folded(name) == folded(path.name)), None)


def ignores_case(folder: pathlib.Path) -> bool:
    """Whether small and capital letters are the same in names of a folder's files, or of the first one above it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.NamedTemporaryFile(prefix=".case-", dir=there) as probe:
            path = pathlib.Path(probe.name)
            return path.with_name(path.name.swapcase()).exists()
    except OSError:
        return False
