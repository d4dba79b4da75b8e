"""Cases in turn, each with its scan opened one case ahead: it is decoded while the one before is segmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from .cases import Case, check_outputs
from .errors import VolumeError
from .run_log import CaseRecord
from .volumes import Ready, Slices, Volume
from .work import Resume, settle

Opened = Future[tuple[Volume, Slices]]


@dataclass(frozen=True)
class Turn:
    """A case whose turn it is.

    Attributes:
        case: which one.
        opened: its scan; None if there is nothing to do. Raises what `open_case` does.
        settled: what the log says of it if there is nothing to do.
    """

    case: Case
    opened: Opened | None = None
    settled: CaseRecord | None = None


class CaseQueue(Iterator[Turn]):
    """Iterates over cases, each with its scan; opens a scan, and begins to decode it, one case ahead of its turn.

    Args:
        cases: in this order.
        resume: what becomes of cases that an earlier run dealt with.
    """

    def __init__(self, cases: Sequence[Case], resume: Resume = Resume()) -> None:  # noqa: B008 (frozen)
        self.total = len(cases)
        self.resume = resume
        self._left = list(cases)
        self._pool = ThreadPoolExecutor(1, "open-ahead")
        self._next = self._begin()

    def _begin(self) -> Turn | None:
        if not self._left:
            return None
        case = self._left.pop(0)
        if settled := settle(case, self.resume):
            return Turn(case, settled=settled)
        return Turn(case, self._pool.submit(open_case, case))

    def __next__(self) -> Turn:
        turn = self._next
        if turn is None:
            raise StopIteration
        self._next = self._begin()
        return turn

    def close(self) -> None:
        """End the decoding of a scan that nobody took."""
        self._pool.shutdown()
        opened = self._next.opened if self._next else None
        if opened is not None and opened.exception() is None:
            opened.result()[1].close()


def open_case(case: Case) -> tuple[Volume, Slices]:
    """Open a case's scan and begin to decode it.

    Raises:
        VolumeError: the scan cannot be read as a CT, or it is known beforehand that it cannot be segmented.
        ResultError: an output would overwrite a file of others.
    """
    if not isinstance(case.scan.state, Ready):
        raise VolumeError(case.scan.state.reason)
    check_outputs(case)
    volume = case.scan.open()
    return volume, volume.slices()
