"""The driver: hands cases to workers, and decides what a lost node, a dead process and an exception mean.

A node that is lost is nobody's fault: its case is done again, up to ten times. A process that dies may have been
killed by its case: that counts, and the next attempt gets a fresh process. An exception fails the case at once. What is
done is on the disk, so that the same command with --skip-existing goes on where the driver itself ended.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from app.cases import Case
from app.errors import InputError
from app.failures import ENDED, MOST_ATTEMPTS, Failure, note_failure
from app.run_log import CaseRecord
from cluster.workers import Needs, Work, start_worker

log = logging.getLogger("app")

MOST_LOST = 10  # times that a case's node may be lost; more is not a coincidence
PROGRESS_SECONDS = 30.0


@dataclass
class Seat:
    """A place for one worker: the worker, where it runs, and the case it is at.

    Attributes:
        actor: its handle.
        waiting_for: the result of its start, then of its case; None while there is nothing to do.
        node: known since it is ready.
        case: None while it starts, or has nothing to do.
    """

    actor: Any
    waiting_for: Any
    node: str | None = None
    case: Case | None = None


@dataclass
class Driver:
    """A run over many workers.

    Attributes:
        work: what they do.
        needs: what each asks of its node.
        workers: how many, at most.
        on_record: is given every case's record, once.
        attempts: how often a case's process died.
        lost: how often its node was lost.
    """

    work: Work
    needs: Needs
    workers: int
    on_record: Callable[[CaseRecord], None]
    attempts: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def run(self, cases: Iterable[Case]) -> None:
        """Do all cases; returns when every one has its record."""
        self.queue = deque(cases)
        self.total, self.done, self.began = len(self.queue), 0, time.monotonic()
        self.told = self.began
        seats = [self._new_seat() for _ in range(min(self.workers, self.total))]
        while self.done < self.total:
            for seat in seats:
                self._give_work(seat)
            by_result = {seat.waiting_for: seat for seat in seats if seat.waiting_for is not None}
            finished, _ = ray.wait(list(by_result), num_returns=1, timeout=PROGRESS_SECONDS)
            for result in finished:
                self._take(by_result[result], result)
            self._tell(seats)
        for seat in seats:
            ray.kill(seat.actor)

    def _new_seat(self) -> Seat:
        actor = start_worker(self.work, self.needs)
        return Seat(actor, actor.ready.remote())

    def _give_work(self, seat: Seat) -> None:
        """Give the next case to a worker that has none.

        One that found the queue empty is asked again: a case whose node was lost comes back to the queue, and this
        worker may hold the only room that is left.
        """
        if seat.waiting_for is None and self.queue:
            seat.case = self.queue.popleft()
            seat.waiting_for = seat.actor.do.remote(seat.case)

    def _take(self, seat: Seat, result: Any) -> None:  # noqa: ANN401 (an object reference)
        """Take what came of a worker's start or case."""
        try:
            found = ray.get(result)
        except RayActorError as error:
            self._worker_ended(seat, error)
            return
        except RayError as error:  # raised in the worker
            if seat.case is None:
                raise
            cause = error.cause if isinstance(error, RayTaskError) else error
            line = " ".join(f"{type(cause).__name__}: {cause}".split())
            self._failed(seat.case, f"{seat.case.scan.path}: unexpected {line}")
        else:
            if seat.case is None:
                seat.node = found
            else:
                self._record(found)
        seat.case = seat.waiting_for = None

    def _worker_ended(self, seat: Seat, error: RayActorError) -> None:
        """Put its case back or give it up, and fill the seat."""
        case = seat.case
        if case is None and seat.node is None and "creation task" in str(error):
            # Its last line is the error that was raised there; no other worker could do better.
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"no worker can start: {reason}") from error
        if case is not None:
            # A process that dies is reported by its node at once. What cannot be reached is a node that is gone, or a
            # network; should it be at work still, then the case is done twice, and the later mask replaces the first.
            is_lost = isinstance(error, ActorUnavailableError) or not self._is_alive(seat.node)
            counts, most = (self.lost, MOST_LOST) if is_lost else (self.attempts, MOST_ATTEMPTS)
            counts[case.name] += 1
            what = "its node was lost" if is_lost else "its process died"
            log.warning("%s: %s (%d of at most %d times)", case.name, what, counts[case.name], most)
            if counts[case.name] < most:
                self.queue.append(case)
            else:
                self._failed(case, f"{case.scan.path}: {ENDED}, {counts[case.name]} times", counts[case.name])
        ray.kill(seat.actor)
        fresh = self._new_seat()
        seat.actor, seat.waiting_for, seat.node, seat.case = fresh.actor, fresh.waiting_for, None, None

    def _is_alive(self, node: str | None) -> bool:
        return node in {one["NodeID"] for one in ray.nodes() if one["Alive"]}

    def _failed(self, case: Case, error: str, attempts: int = 1) -> None:
        note_failure(case.base, case.name, Failure(error, attempts))
        self._record(CaseRecord(case.name, "failed", error, series_uid=case.scan.series_uid))

    def _record(self, record: CaseRecord) -> None:
        self.done += 1
        self.on_record(record)

    def _tell(self, seats: Iterable[Seat]) -> None:
        """Say now and then how far it is, or what it waits for."""
        now = time.monotonic()
        is_time = now - self.told >= PROGRESS_SECONDS
        if is_time and all(seat.node is None for seat in seats):
            self.told = now
            log.warning("no worker is running: waiting for a node with room for %s", self.needs)
        elif self.done and (is_time or self.done == self.total):
            self.told = now
            per_minute = 60 * self.done / (now - self.began)
            left = (self.total - self.done) / per_minute
            log.info("%d of %d cases, %.1f per minute, %.0f minutes left", self.done, self.total, per_minute, left)
