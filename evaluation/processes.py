"""One function for many files, in as many processes as there are CPUs for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from app.host import process_pool, usable_cpus

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class ProcessError(Exception):
    """A process was ended from outside; the message says what to do."""


def in_processes(function: Callable[[Item], Outcome], items: Sequence[Item], title: str) -> list[Outcome]:
    """The function's outcome for every item, in order, with a bar of progress on a terminal.

    Where processes cannot be had, or one would do, this one does it all.

    Args:
        function: of a module, since processes are spawned; its first exception ends the work and is raised here.
        items: what it is called with.
        title: of the bar.

    Raises:
        ProcessError: a process was killed.
    """
    count = min(len(items), usable_cpus())
    try:
        pool = process_pool(count) if count > 1 else None
    except OSError:  # no writable /dev/shm
        pool = None
    if pool is None:
        return list(tqdm(map(function, items), title, len(items), disable=None))
    try:
        with pool:
            return list(tqdm(pool.map(function, items), title, len(items), disable=None))
    except BrokenProcessPool as error:
        raise ProcessError(
            f"{title}: a process was killed, most often for want of memory; free some and try again"
        ) from error
