"""python -m cluster INPUT OUTPUT: segment scans on all machines of a Ray cluster, or all processors of this one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from app.cases import Case, check_output, why_skipped
from app.cli import DONE, SOME_FAILED, set_up
from app.errors import AppError
from app.options import ModelChoice, Request, options_of_input, options_of_model
from app.run_log import CaseRecord, append

log = logging.getLogger("app")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options_of_input
@click.option(
    "--address", help="Of a running Ray cluster, `auto` for the one this machine belongs to; default: start one."
)
@click.option("--workers", type=click.IntRange(min=1), help="At most so many; default: what the cluster has room for.")
@click.option("--cpus-per-worker", type=float, default=1, show_default=True)
@click.option("--gpus-per-worker", type=float, default=0, show_default=True, help="May be a fraction of one card.")
@click.option("--memory-per-worker", "memory_mib", type=int, default=1500, show_default=True, help="MiB.")
@options_of_model
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

    INPUT and OUTPUT have to be the same folders on all nodes. Exit status: 0 all done, 1 some case failed, 2 usage.
    """
    set_up(verbose)
    request, choice = Request.taken_from(options), ModelChoice.taken_from(options)
    try:
        with request.cases() as (cases, results):
            check_output(request.output)
            todo, failed = _to_do(request, cases)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray  # takes a second, and usage errors need none of it

            from app.run import report
            from cluster.driver import Driver
            from cluster.workers import Needs, Segmenting

            def on_record(record: CaseRecord) -> None:
                nonlocal failed
                failed += record.status == "failed"
                append(request.output, record)
                report(record.case, record)

            if todo:
                ray.init(address, log_to_driver=verbose, logging_level=logging.WARNING, include_dashboard=None)
                needs = Needs(cpus_per_worker, gpus_per_worker, memory_mib)
                Driver(Segmenting(choice), needs, workers or room(needs), on_record).run(todo)
            for result in results.values():
                result.finish(request.output)
            sys.exit(SOME_FAILED if failed else DONE)
    except AppError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


def _to_do(request: Request, cases: Sequence[Case]) -> tuple[list[Case], int]:
    """The cases that are left, and how many of the others failed before; the log gets a line for each of the others."""
    todo, failed = [], 0
    for case in cases:
        skip = why_skipped(case, request.retry_failed) if request.skip_existing else None
        if case.scan.not_ct:
            append(request.output, case.ignored())
        elif skip:
            failed += skip.failed_before
            append(request.output, skip.record(case))
        else:
            todo.append(case)
    return todo, failed


def room(needs: Any) -> int:  # noqa: ANN401 (Needs, which imports ray)
    """How many workers the cluster has room for now; at least one."""
    import ray

    there = ray.cluster_resources()
    fits = [there.get("CPU", 1) / needs.cpus, there.get("memory", 0) / (needs.memory_mib << 20)]
    if needs.gpus:
        fits.append(there.get("GPU", 0) / needs.gpus)
    return max(1, int(min(fits)))


if __name__ == "__main__":
    main(prog_name="python -m cluster")
