"""From cases to results: the work on one case, and a run over many in which one that fails does not stop the others."""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .case_queue import CaseQueue, Opened, open_case
from .cases import Case
from .errors import AppError, ResultError
from .failures import Failure, clear_failure, note_failure
from .gpu_memory import MemorySampler, nvml_reader, peak_flare2021
from .host import peak_rss_mib
from .inference.labelling import OnSlice
from .results import left_behind, marks_of, write_all
from .run_log import CaseRecord, Environment
from .segmentation import Segmentation
from .segmenter import Segmenter
from .version import __version__
from .work import RunLog, attempt

log = logging.getLogger(__package__)

Progress = Callable[[int], contextlib.AbstractContextManager[OnSlice]]  # opens a display for a number of slices
ReadMemory = Callable[[], int]


def no_progress(slices: int) -> contextlib.AbstractContextManager[OnSlice]:
    """A display that shows nothing."""
    return contextlib.nullcontext(lambda count: None)


def predict_case(
    segmenter: Segmenter,
    case: Case,
    opened: Opened | None = None,
    progress: Progress = no_progress,
    read_used_mib: ReadMemory | None = None,
) -> CaseRecord:
    """Read, segment and write one case. Whatever is wrong with it ends up in the record; nothing is raised.

    Args:
        segmenter: the model.
        case: the scan, and where its results go.
        opened: the scan, where it was opened ahead.
        progress: opens a display for as many slices as it is given, with a function to call as slices are done.
        read_used_mib: gives the GPU memory in use; None without a GPU.
    """
    begin = time.perf_counter()
    segmentation, problem, seconds, left = None, None, dict[str, float | None](), list[str]()
    segmenter.engine.peak_mib(reset=True)
    with MemorySampler(read_used_mib) as sampler:
        try:
            segmentation = _segment(segmenter, case, opened, progress)
            left = _write(segmentation, case, seconds)
        except Exception as error:  # whatever is wrong with one case, the others go on
            known = isinstance(error, AppError)
            problem = str(error) if known else f"{case.scan.path}: unexpected {type(error).__name__}: {error}"
            note_failure(case.base, case.name, Failure(problem))
            log.debug("%s", case.name, exc_info=error)
        else:
            clear_failure(case.base)
    surroundings = environment(segmenter, sampler.samples_mib)
    record = CaseRecord.of(segmentation, surroundings) if segmentation else CaseRecord(case.name, **vars(surroundings))
    if problem is not None:
        record.status, record.error = "failed", problem
    record.warnings += left
    record.seconds |= seconds | {"total": round(time.perf_counter() - begin, 3)}
    record.series_uid = case.scan.series_uid
    return record


def _segment(segmenter: Segmenter, case: Case, opened: Opened | None, progress: Progress) -> Segmentation:
    """Read and segment one case."""
    volume, slices = opened.result() if opened else open_case(case)
    gather = any(output.needs_scan for output in case.results.values())
    with progress(volume.geometry.shape_zyx[0]) as on_slice:
        return segmenter.segment_volume(volume, slices, case=case.name, gather=gather, on_slice=on_slice)


def _write(segmentation: Segmentation, case: Case, seconds: dict[str, float | None]) -> list[str]:
    """Write the outputs of one case, and note how long that took.

    Returns:
        Warnings, see `left_behind`.

    Raises:
        ResultError: some could not be written; the others were.
    """
    begin, before = time.perf_counter(), marks_of(case.outputs.values())
    try:
        case.base.parent.mkdir(parents=True, exist_ok=True)  # a folder of the mirrored tree
        write_all(segmentation, case.results, case.outputs)
    except OSError as error:
        raise ResultError(
            f"{case.base.parent}: cannot be made ({error.strerror}); check the folder above it"
        ) from error
    finally:
        seconds["write"] = round(time.perf_counter() - begin, 3)
    return left_behind(case.base, case.outputs.values(), before)


def environment(segmenter: Segmenter, samples_mib: Sequence[int]) -> Environment:
    """Memory, device, versions and weights; null where there is no GPU."""
    about, model = segmenter.engine.about(), segmenter.model
    return Environment(
        gpu_peak_mib={
            "flare2021": peak_flare2021(samples_mib),
            "maximum": max(samples_mib, default=None),
            "torch": segmenter.engine.peak_mib(),
        },
        host_peak_rss_mib=peak_rss_mib(),
        device=about.device_name,
        precision=about.precision,
        model=model.name,
        weights_sha256=dict(model.sha256),
        versions={
            "app": __version__,
            "weights": model.version,
            **dict.fromkeys(("torch", "cuda", "openvino")),  # every line has the same fields
            **about.versions,
            "python": platform.python_version(),
        },
    )


class CaseRunner:
    """Does one case after the other with one loaded model, and notes what the log says of the process.

    Args:
        segmenter: the model.
        start_up_seconds: until it was ready; goes into the first case's record. None where that is not known.
    """

    def __init__(self, segmenter: Segmenter, start_up_seconds: float | None = 0.0) -> None:
        self.segmenter = segmenter
        self._start_up_seconds = start_up_seconds
        self._open = contextlib.ExitStack()
        self._read_used_mib = self._open.enter_context(nvml_reader(segmenter.engine.about().gpu_uuid))
        if self._read_used_mib is None:
            log.info("GPU memory: not measured, the run is not on a GPU that NVML knows")

    def do(self, case: Case, opened: Opened | None = None, progress: Progress = no_progress) -> CaseRecord:
        """Do one case; see `predict_case`."""
        record = predict_case(self.segmenter, case, opened, progress, self._read_used_mib)
        start_up, self._start_up_seconds = self._start_up_seconds, 0.0
        record.seconds["start_up"] = None if start_up is None else round(start_up, 3)
        return record

    def close(self) -> None:
        """End the measurement."""
        self._open.close()


@dataclass
class Run:
    """A run over many cases, one after the other, in this process.

    Attributes:
        runner: does the cases.
        log: gets the record of each.
        progress: opens a display for (case, slices); see `predict_case`.
    """

    runner: CaseRunner
    log: RunLog
    progress: Callable[[str, int], contextlib.AbstractContextManager[OnSlice]] = lambda label, slices: no_progress(
        slices
    )

    def do(self, cases: CaseQueue) -> None:
        """Do every case; one that fails is one line, and the others go on."""
        for number, turn in enumerate(cases, 1):
            label = f"[{number}/{cases.total}] {turn.case.name}"
            record = turn.settled
            if record is None:
                with attempt(turn.case, cases.resume):
                    record = self.runner.do(turn.case, turn.opened, partial(self.progress, label))
            self.log.add(record, label)
