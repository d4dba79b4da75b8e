"""What runs on the nodes: actors that load the model once and do one case at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from app.cases import Case
from app.options import ModelChoice
from app.run_log import CaseRecord

MIB = 1 << 20


class Work(Protocol):
    """What an actor does, made once per actor; it is pickled on its way there."""

    def load(self) -> Any:  # noqa: ANN401 (whatever `do` needs)
        """Load what all cases need."""
        ...

    def do(self, loaded: Any, case: Case) -> CaseRecord:  # noqa: ANN401
        """Do one case; an exception fails it."""
        ...


@dataclass(frozen=True)
class Segmenting:
    """The work itself: load a model, segment and write cases with it."""

    choice: ModelChoice

    def load(self) -> Any:  # noqa: ANN401
        """See `Work.load`."""
        begin = time.perf_counter()  # Ray's processes are older than their actors
        segmenter = self.choice.load()
        from app.run import CaseRunner

        return CaseRunner(segmenter, time.perf_counter() - begin)

    def do(self, loaded: Any, case: Case) -> CaseRecord:  # noqa: ANN401
        """See `Work.do`."""
        record: CaseRecord = loaded.do(case)
        return record


@dataclass(frozen=True)
class Needs:
    """What a worker asks of its node.

    Attributes:
        cpus: threads that the network gets.
        gpus: a whole number, or a fraction of one card.
        memory_mib: of the host; measured peaks are in docs/CLUSTER.md.
    """

    cpus: float = 1
    gpus: float = 0
    memory_mib: int = 1500

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU, " if self.gpus else ""
        return f"{self.cpus:g} CPU, {gpus}{self.memory_mib} MiB"


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """One process on some node. It is never restarted or retried by Ray: the driver counts attempts per case."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.loaded = work.load()

    def ready(self) -> str:
        """The node that it runs on; the model is loaded by now."""
        return str(ray.get_runtime_context().get_node_id())

    def do(self, case: Case) -> CaseRecord:
        """Do one case."""
        return self.work.do(self.loaded, case)


def start_worker(work: Work, needs: Needs) -> Any:  # noqa: ANN401 (an actor's handle)
    """Ask for a worker; it may wait until a node has room for it."""
    resources = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": needs.memory_mib * MIB}
    remote: Any = Worker  # what the decorator makes of it, Ray's types do not tell
    return remote.options(**resources).remote(work)
