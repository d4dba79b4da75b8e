"""Cases without any work, to measure what the driver itself takes."""

from __future__ import annotations

import pathlib
from typing import Any

import ray

from app.cases import Case
from app.errors import VolumeError
from app.run_log import CaseRecord
from app.volumes import Scan, Volume
from cluster.driver import Driver
from cluster.workers import Needs


class Nothing:
    """A `Work` that does nothing."""

    def load(self) -> None:
        """See `Work.load`."""

    def do(self, loaded: Any, case: Case) -> CaseRecord:  # noqa: ANN401
        """See `Work.do`."""
        return CaseRecord(case.name)


def no_volume() -> Volume:
    """What a stub's scan opens as.

    Raises:
        VolumeError: always.
    """
    raise VolumeError("a stub has no voxels")


def run_stubs(count: int, folder: pathlib.Path) -> int:
    """Run a number of stubs over two workers of this machine and return how many came back."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    cases = [
        Case(Scan(f"{i:06d}", folder / f"{i:06d}.nii.gz", no_volume), folder / f"{i:06d}", {}) for i in range(count)
    ]
    came_back = []
    Driver(Nothing(), Needs(memory_mib=100), 2, lambda record: came_back.append(1)).run(cases)
    ray.shutdown()
    return len(came_back)
