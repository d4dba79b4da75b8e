"""One run split over many processes, none of which knows the others: each takes its share of the cases.

Every process lists the same INPUT, and so comes to the same split. Masks are renamed into place, so that work that is
done twice does no harm; each process appends to a log of its own, since appending over a network file system is not
safe, and `merge-logs` makes one of them.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .errors import InputError
from .run_log import RUN_LOG, SHARD_LOGS, read_records, rewrite

log = logging.getLogger(__package__)

OPTION = "--shard"
LOG_NAME = re.compile(r"run_log-(\d+)-of-(\d+)\.jsonl$")
SLURM = "SLURM_ARRAY_TASK_ID"
FROM_0 = {"JOB_COMPLETION_INDEX": "JOB_COMPLETIONS", "AWS_BATCH_JOB_ARRAY_INDEX": "AWS_BATCH_JOB_ARRAY_SIZE"}
# Numbers of a task that do not say of how many; LSF's is 0 where there is no array, Grid Engine's `undefined`.
OTHERS = (SLURM, *FROM_0, "SGE_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "LSB_JOBINDEX")
NO_ARRAY = {"LSB_JOBINDEX": "0"}


class Sized(Protocol):
    """What can be shared out."""

    @property
    def name(self) -> str:
        """Tells it from others."""
        ...

    @property
    def size_bytes(self) -> int:
        """How much work it is, about."""
        ...


Item = TypeVar("Item", bound=Sized)


@dataclass(frozen=True)
class Shard:
    """A share of a run.

    Attributes:
        index: from 1 to `count`.
        count: of shards.
        source: what it was taken from, for messages.
    """

    index: int = 1
    count: int = 1
    source: str = OPTION

    @property
    def was_asked_for(self) -> bool:
        """Whether the user named the shard, and not the environment."""
        return self.source == OPTION

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N`, I from 1 to N.

        Raises:
            InputError: it is something else.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise InputError(f"--shard {text}: expected I/N, such as 3/8, with I from 1 to N")
        return cls(int(first), int(second))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """The share of a task of a SLURM or AWS Batch array, or of a pod of an indexed Kubernetes job; else all.

        A pod does not know how many there are, so that the manifest has to set JOB_COMPLETIONS. A task that does not
        know that does all, and its variable is the source.

        Raises:
            InputError: the array's numbers have gaps, so that a task cannot know which one of them it is.
        """
        try:
            if SLURM in environment and "SLURM_ARRAY_TASK_COUNT" in environment:
                number, low, high, step, count = (
                    int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
                    for name, default in (("ID", ""), ("MIN", ""), ("MAX", ""), ("STEP", "1"), ("COUNT", ""))
                )
                if (high - low) // step + 1 != count:
                    raise InputError(
                        f"{SLURM} {number}: the array's numbers have gaps; say which part it is: --shard I/N"
                    )
                return cls((number - low) // step + 1, count, SLURM)
            for number_name, count_name in FROM_0.items():
                if number_name in environment and count_name in environment:
                    return cls(int(environment[number_name]) + 1, int(environment[count_name]), number_name)
        except ValueError as error:
            raise InputError(f"the job array's variables are not numbers ({error}); give --shard I/N") from error
        arrays = (name for name in OTHERS if environment.get(name, "").isdecimal())
        return cls(source=next((name for name in arrays if environment[name] != NO_ARRAY.get(name)), OPTION))

    def pick(self, items: Sequence[Item]) -> list[Item]:
        """The shard's items, in their order: the largest first, each goes to the shard that has least so far."""
        if self.count == 1:
            return list(items)
        loads = [0] * self.count
        mine = set()
        for i in sorted(range(len(items)), key=lambda i: (-items[i].size_bytes, items[i].name, i)):
            target = min(range(self.count), key=lambda j: (loads[j], j))
            loads[target] += max(1, items[i].size_bytes)
            if target == self.index - 1:
                mine.add(i)
        return [item for i, item in enumerate(items) if i in mine]

    @property
    def log_name(self) -> str:
        """Of its run log."""
        return RUN_LOG if self.count == 1 else f"run_log-{self.index:04d}-of-{self.count:04d}.jsonl"


def merge_logs(output: pathlib.Path) -> int:
    """Make one run log of all: the last line of every case, but a finished one before others; returns how many.

    Raises:
        InputError: there is no log, or it cannot be written.
    """
    records = read_records(output)
    if not records:
        raise InputError(f"{output}: no run log; give the folder of a run's masks")
    missing = _missing(output)
    if missing:
        log.warning("%s: no log of shard %s; it had no scan, or was not run", output, ", ".join(missing))
    merged = best_records(records)
    try:
        rewrite(output, merged)
    except OSError as error:
        raise InputError(f"{output / RUN_LOG}: cannot be written ({error.strerror})") from error
    return len(merged)


def _missing(output: pathlib.Path) -> list[str]:
    """The shards without a log, as I/N, of runs in which others have one."""
    there = [
        tuple(map(int, found.groups())) for path in output.glob(SHARD_LOGS) if (found := LOG_NAME.match(path.name))
    ]
    return [f"{i}/{n}" for n in sorted({n for _, n in there}) for i in range(1, n + 1) if (i, n) not in there]


def best_records(records: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """The record that counts of every case, by name: a case that is done stays so, though it was skipped later."""
    best: dict[str, dict[str, object]] = {}
    rank = {"skipped": 0, "ignored": 1, "failed": 2, "done": 3}
    for record in records:
        case = str(record.get("case"))
        if case not in best or rank.get(str(record.get("status")), 0) >= rank.get(str(best[case].get("status")), 0):
            best[case] = record
    return [best[case] for case in sorted(best)]
