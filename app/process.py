"""The process around a command: its streams, its logging, its signals, and its end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator

from .whole_file import printable

_log = logging.getLogger(__package__)

# The signals that end a process which does not ask for them, see signal(7); a batch system may send any of them. Not
# those of an error in the program, nor SIGPIPE and SIGXFSZ, of which Python makes exceptions.
ENDING = [
    getattr(signal, name)
    for name in (
        *("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF"),
        *("SIGXCPU", "SIGPOLL", "SIGPWR", "SIGSTKFLT"),
    )
    if hasattr(signal, name)
]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a write that fails for these names no file


@contextlib.contextmanager
def full_disk_in_one_line() -> Iterator[None]:
    """A full disk ends the process with a line on standard error, also one that standard output goes to.

    A reader that closed its end of a pipe ends it without one; click sees to that.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        drop_standard_output()
        where = error.filename or "standard output or a file"
        sys.exit(f"error: {where}: {error.strerror}; free disk space, or write elsewhere")


def drop_standard_output() -> None:
    """Print to nowhere from now on, and leave out what a standard output that failed still holds."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (for the process's life)


def set_up(verbose: bool) -> None:
    """Streams, logging and signals of a process that segments."""
    _open_standard_streams()
    _set_up_logging(verbose)
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and a shell's background jobs
            signal.signal(number, _terminate)


def _open_standard_streams() -> None:
    """Open what the caller closed (`2>&-`) onto nothing: a mask must not become file descriptor 2."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 (for the process's life)


def _set_up_logging(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    _log.setLevel(logging.DEBUG if verbose else logging.INFO)


class _OneLine(logging.Formatter):
    """Formats a message as one line, whatever the names of files in it are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record.message = printable(record.message)
        return super().formatMessage(record)


def _terminate(number: int, _frame: object) -> None:
    """Unwind the stack, so that no partial file and nothing unpacked stays behind.

    A container's first process would ignore SIGTERM otherwise.
    """
    sys.exit(128 + number)


def leave(status: object) -> None:
    """End the process without the interpreter's teardown. Call only when everything is written and closed.

    Returns where that might lose something: output that cannot be written, or a message in place of a status.
    """
    if status is not None and not isinstance(status, int):
        return
    try:
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the caller closed it
            stream.flush()
    except (OSError, ValueError):
        return
    os._exit(status or 0)
