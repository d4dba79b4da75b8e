"""X.failed.json: why a case failed and how often it was tried, so that it is not retried forever."""

from __future__ import annotations

import contextlib
import json
import pathlib
from dataclasses import dataclass

from .version import __version__
from .whole_file import beside, whole_file

EXTENSION = ".failed.json"
MOST_ATTEMPTS = 3  # of a case that ended its process: a node's end looks the same as a scan that kills
ENDED = "the process ended during this case (out of memory, killed, or a node went down)"


@dataclass(frozen=True)
class Failure:
    """What the file of a failed case says.

    Attributes:
        error: why it failed.
        attempts: how often it was tried.
    """

    error: str
    attempts: int = 1

    @property
    def may_be_retried(self) -> bool:
        """Whether to try again: a process may have ended for a reason other than this case."""
        return self.error == ENDED and self.attempts < MOST_ATTEMPTS


def failure_path(base: pathlib.Path) -> pathlib.Path:
    """Where the file of a case is; `base` is the path of its outputs without an extension, see `Case`."""
    return beside(base, EXTENSION)


def read_failure(base: pathlib.Path) -> Failure | None:
    """How a case failed before; None if it did not, or if the file is not one of ours."""
    try:
        found = json.loads(failure_path(base).read_text())
        return Failure(str(found["error"]), int(found["attempts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_failure(base: pathlib.Path, case: str, failure: Failure) -> None:
    """Write the file, unless somebody else's is there or it cannot be written; the log has the reason in any case."""
    path = failure_path(base)
    content = {"case": case, "error": failure.error, "attempts": failure.attempts, "version": __version__}
    with contextlib.suppress(OSError):
        if path.exists() and any(path.read_bytes()) and read_failure(base) is None:
            return  # a crash would have left it empty, or zeros
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(json.dumps(content).encode() + b"\n")


def note_attempt(base: pathlib.Path, case: str) -> None:
    """Write down that a case is being tried, in case this process does not live to report its failure."""
    before = read_failure(base)
    attempts = before.attempts if before and before.error == ENDED else 0
    note_failure(base, case, Failure(ENDED, attempts + 1))


def clear_failure(base: pathlib.Path) -> None:
    """Forget a failure: the case was done."""
    if read_failure(base) is not None:
        with contextlib.suppress(OSError):
            failure_path(base).unlink(missing_ok=True)
