"""python -m cluster INPUT OUTPUT: segment scans on all machines of a Ray cluster, or all processors of this one."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from app.cases import Case, check_output
from app.errors import InputError
from app.options import Command, ModelChoice, Request, of_machines, options_of_input, options_of_model
from app.process import full_disk_in_one_line, set_up
from app.results import finish_all
from app.run_log import CaseRecord
from app.work import RunLog, exit_status, settle

if TYPE_CHECKING:
    from cluster.workers import Needs


ANSWER_SECONDS = 10.0
AMOUNT = click.FloatRange(min=0, min_open=True)


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@options_of_input
@options_of_model
@of_machines(
    "--address",
    metavar="ADDRESS",
    help="Join this Ray cluster; `auto`: the one that this machine belongs to; default: start one here.",
)
@of_machines(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="At most N; default: as many as the cluster has room for.",
)
@of_machines("--cpus-per-worker", type=AMOUNT, default=1, show_default=True, help="Processors of each worker.")
@of_machines(
    "--gpus-per-worker",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="GPUs of each; may be a fraction.",
)
@of_machines(
    "--memory-per-worker",
    "memory_mib",
    type=click.IntRange(min=1),
    default=1500,
    show_default=True,
    help="Memory of each, in MiB.",
)
def main(
    address: str | None,
    workers: int | None,
    cpus_per_worker: float,
    gpus_per_worker: float,
    memory_mib: int,
    verbose: bool,
    **options: Any,  # noqa: ANN401 (see Request, ModelChoice)
) -> None:
    """Segment the scans of INPUT into OUTPUT, as `python -m app` does, on many workers.

    INPUT and OUTPUT have to be the same folders on all nodes.

    Exit status: 0 all done, 1 some case failed, 2 wrong usage.
    """
    set_up(verbose)
    request, choice = Request.taken_from(options), ModelChoice.taken_from(options)
    if gpus_per_worker > 1 and gpus_per_worker % 1:
        raise click.UsageError(f"--gpus-per-worker {gpus_per_worker:g}: expected a fraction of 1, or a whole number")

    def command() -> int:
        with request.cases() as (cases, results):
            check_output(request.output, cases)
            log, todo = RunLog(request.output), []
            for case in cases:
                if record := settle(case, request.resume):
                    log.add(record)
                else:
                    todo.append(case)
            if todo:
                needs = _start_ray(address, verbose, cpus_per_worker, gpus_per_worker, memory_mib)
                _drive(todo, choice, needs, workers, log.add)
            finish_all(results, request.output)
            return log.exit_status

    sys.exit(exit_status(command))


def _start_ray(address: str | None, verbose: bool, cpus: float, gpus: float, memory_mib: int) -> Needs:
    """Start a cluster, or join one; what each of its workers needs.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # takes a second, and usage errors need none of it
    except ImportError as error:
        raise InputError(f"a run on a cluster needs {error.name or 'ray'}; pip install '.[cluster]'") from error
    named = (os.environ.get("RAY_ADDRESS") if address in (None, "auto") else None) or address
    if named:
        logging.getLogger("app").info("joining the Ray cluster at %s", named)
        _find(named)
    try:
        ray.init(address, log_to_driver=verbose, logging_level=logging.WARNING, include_dashboard=None)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        what = f"{named}: no Ray cluster that can be used" if named else "Ray cannot be started here"
        raise InputError(f"{what} ({line})") from error
    from cluster.workers import Needs

    return Needs(cpus, gpus, memory_mib)


def _find(address: str) -> None:
    """Connect to a cluster's address, and hang up: Ray itself would try for a quarter of an hour, without a word.

    Raises:
        InputError: nobody answers there.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        return  # `local`, or what Ray knows to read
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{address}: no Ray cluster answers there ({error}); correct --address or RAY_ADDRESS, or unset both"
        ) from error


def _drive(
    cases: Sequence[Case],
    choice: ModelChoice,
    needs: Needs,
    workers: int | None,
    on_record: Callable[[CaseRecord], None],
) -> None:
    """Do the cases on workers that have a model each."""
    from cluster.driver import Driver
    from cluster.workers import Segmenting

    Driver(Segmenting(choice), needs, workers or room(needs), on_record).run(cases)


def room(needs: Needs) -> int:
    """How many workers the cluster has room for now; at least one."""
    import ray

    there = ray.cluster_resources()
    fits = [there.get("CPU", 1) / needs.cpus, there.get("memory", 0) / (needs.memory_mib << 20)]
    if needs.gpus:
        fits.append(there.get("GPU", 0) / needs.gpus)
    return max(1, int(min(fits)))


if __name__ == "__main__":
    with full_disk_in_one_line():
        main(prog_name="python -m cluster")
