"""X.failed.json: a case that failed, why, and how often it was tried; so that poison is not tried for ever."""

from __future__ import annotations

import contextlib
import json
import pathlib

from .version import __version__
from .whole_file import beside, whole_file

EXTENSION = ".failed.json"
MOST_ATTEMPTS = 3  # of a case that ended its process: a node's end looks the same as a scan that kills
ENDED = "the process ended during this case (out of memory, killed, or a node went down)"


def failure_path(mask_path: pathlib.Path) -> pathlib.Path:
    """Beside the mask."""
    return beside(mask_path, EXTENSION)


def read_failure(mask_path: pathlib.Path) -> tuple[str, int, bool] | None:
    """Why a case failed, how often it was tried, and whether it may be tried again; None if it did not fail."""
    try:
        found = json.loads(failure_path(mask_path).read_text())
        error, attempts = str(found["error"]), int(found["attempts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return error, attempts, error == ENDED and attempts < MOST_ATTEMPTS


def note_failure(mask_path: pathlib.Path, case: str, error: str, attempts: int = 1) -> None:
    """Write the file; where that is not possible, or others wrote one, the log has the reason all the same."""
    path = failure_path(mask_path)
    if path.exists() and read_failure(mask_path) is None:
        return
    content = {"case": case, "error": error, "attempts": attempts, "version": __version__}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(json.dumps(content).encode() + b"\n")


def note_attempt(mask_path: pathlib.Path, case: str) -> None:
    """Note before a case that it is being tried, for a process that will not live to note its failure."""
    before = read_failure(mask_path)
    note_failure(mask_path, case, ENDED, 1 + (before[1] if before and before[0] == ENDED else 0))


def clear_failure(mask_path: pathlib.Path) -> None:
    """Forget a failure: the case was done."""
    if read_failure(mask_path) is not None:
        with contextlib.suppress(OSError):
            failure_path(mask_path).unlink(missing_ok=True)
