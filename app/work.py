"""What a run decides about each case and what it keeps of it, alike for the plain run and for the cluster.

Both have a loop of their own, and nothing else of their own: which cases are left out, what the log and the user read
of each, what becomes of a log that cannot be written, and the exit status are decided here. Imports no torch, no click
and no Ray.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .cases import Case
from .errors import AppError, InputError
from .failures import clear_failure, note_attempt, read_failure
from .run_log import RUN_LOG, CaseRecord, append
from .volumes import NotCt

log = logging.getLogger(__package__)

DONE, SOME_FAILED = 0, 1  # an error that ends the run has an exit status of its own, see errors.py


@dataclass(frozen=True)
class Resume:
    """What becomes of cases that an earlier run dealt with.

    Attributes:
        skip_existing: skip cases that are done or failed before.
        retry_failed: with `skip_existing`, try those that failed again.
    """

    skip_existing: bool = False
    retry_failed: bool = False


def settle(case: Case, resume: Resume) -> CaseRecord | None:
    """The log's record of a case that needs no work; None if it is to be done.

    It is ignored if it is not a CT, and skipped if its outputs exist or, with an error, if it failed before.
    """
    if isinstance(case.scan.state, NotCt):
        return CaseRecord(case.name, "ignored", case.scan.state.reason, series_uid=case.scan.series_uid)
    if not resume.skip_existing or case.is_name_taken:
        return None
    if all(case.results[name].is_whole(path) for name, path in case.outputs.items()):
        return CaseRecord(case.name, "skipped")
    failure = read_failure(case.base)
    if failure and not failure.may_be_retried and not resume.retry_failed:
        reason = f"it failed before ({failure.error}); --retry-failed tries again"
        return CaseRecord(case.name, "skipped", reason)
    return None


@contextlib.contextmanager
def attempt(case: Case, resume: Resume) -> Iterator[None]:
    """Count the attempts of a case that may end this process, if a later run is to know of them.

    A run that is asked to stop takes its attempt back: the case is not to blame.
    """
    if not resume.skip_existing:
        yield
        return
    note_attempt(case.base, case.name)
    try:
        yield
    except BaseException:
        clear_failure(case.base)
        raise


class RunLog:
    """What one process tells of its cases: a line of the log for each, and lines for the user.

    Attributes:
        failed: how many cases failed, now or before.
    """

    def __init__(self, folder: pathlib.Path, name: str = RUN_LOG) -> None:
        self.failed = 0
        self._folder = folder
        self._name = name

    def add(self, record: CaseRecord, label: str | None = None) -> None:
        """Append a case's record, and tell the user of it; a log that cannot be written is a warning.

        Args:
            record: of the case.
            label: what to call it, if not by its name.
        """
        self.failed += record.status == "failed" or (record.status == "skipped" and record.error is not None)
        report(record, label or record.case)
        try:
            append(self._folder, record, self._name)
        except OSError as error:
            log.warning("%s: not written (%s)", self._folder / self._name, error.strerror)

    @property
    def exit_status(self) -> int:
        """Of the process, if nothing else goes wrong."""
        return SOME_FAILED if self.failed else DONE


def report(record: CaseRecord, label: str) -> None:
    """One line for a case, and one for each of its warnings."""
    if record.status == "ignored":
        log.info("%s", record.error)
    elif record.status == "skipped":
        log.info("%s: skipped, %s", label, record.error or "its mask exists")
    elif record.status == "failed":
        log.error("%s", record.error)
    else:
        seconds = {
            stage: value
            for stage, value in record.seconds.items()
            if stage not in ("total", "start_up") and value is not None
        }
        volumes = ", ".join(f"{organ} {ml:.0f} ml" for organ, ml in (record.volumes_ml or {}).items())
        stages = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
        log.info("%s: %s; %.1f s (%s)", label, volumes, sum(seconds.values()), stages)
    for warning in record.warnings:
        log.warning("%s: %s", record.case, warning)


def exit_status(command: Callable[[], int]) -> int:
    """Run a command; an error of ours that ends it becomes one line, and the exit status that its class knows."""
    try:
        return command()
    except AppError as error:
        log.error("%s", error)
        return error.exit_code
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        log.error(
            "no thread can be started; raise the limit of processes (--pids-limit, ulimit -u) or memory (ulimit -v)"
        )
        return InputError.exit_code
