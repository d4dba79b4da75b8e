"""From cases to results: the work on one case, and a run over many in which one that fails does not stop the others."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import run_log
from .cases import Case, CaseQueue, Opened, open_case
from .errors import AppError
from .failures import clear_failure, note_attempt, note_failure
from .gpu_memory import MemorySampler, nvml_reader, peak_flare2021
from .host import peak_rss_mib
from .inference.labelling import OnSlice
from .run_log import CaseRecord, Environment
from .segmentation import Segmentation
from .segmenter import Segmenter
from .version import __version__

log = logging.getLogger(__package__)

Progress = Callable[[int], contextlib.AbstractContextManager[OnSlice]]  # opens a display for so many slices
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
    segmentation, problem, written = None, None, 0.0
    segmenter.engine.peak_mib(reset=True)
    with MemorySampler(read_used_mib) as sampler:
        try:
            segmentation = _segment(segmenter, case, opened, progress)
            written = _write(segmentation, case)
        except Exception as error:  # whatever is wrong with one case, the others go on
            known = isinstance(error, AppError)
            problem = str(error) if known else f"{case.scan.path}: unexpected {type(error).__name__}: {error}"
            note_failure(case.mask_path, case.name, problem)
            log.debug("%s", case.name, exc_info=error)
        else:
            clear_failure(case.mask_path)
    surroundings = environment(segmenter, sampler.samples_mib)
    if problem is not None or segmentation is None:
        record = CaseRecord(case.name, "failed", problem, **vars(surroundings))
    else:
        record = CaseRecord.of(segmentation, surroundings)
        record.seconds["write"] = round(written, 3)
    record.seconds["total"] = round(time.perf_counter() - begin, 3)
    record.series_uid = case.scan.series_uid
    return record


def _segment(segmenter: Segmenter, case: Case, opened: Opened | None, progress: Progress) -> Segmentation:
    """Read and segment one case."""
    volume, slices = opened.result() if opened else open_case(case)
    gather = any(output.needs_scan for output in case.results.values())
    with progress(volume.geometry.shape_zyx[0]) as on_slice:
        return segmenter.segment_volume(volume, slices, case=case.name, gather=gather, on_slice=on_slice)


def _write(segmentation: Segmentation, case: Case) -> float:
    """Write the outputs of one case; the seconds that it took."""
    begin = time.perf_counter()
    case.mask_path.parent.mkdir(parents=True, exist_ok=True)  # a folder of the mirrored tree
    for name, path in case.outputs.items():
        case.results[name].write(segmentation, path)
    return time.perf_counter() - begin


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
            **about.versions,
            "python": platform.python_version(),
        },
    )


def report(label: str, record: CaseRecord) -> None:
    """Log one line for a case, and one for each of its warnings."""
    if record.error is not None:
        log.error("%s", record.error)
        return
    seconds = {stage: value for stage, value in record.seconds.items() if stage != "total" and value is not None}
    volumes = ", ".join(f"{organ} {ml:.0f} ml" for organ, ml in (record.volumes_ml or {}).items())
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
    log.info("%s: %s; %.1f s (%s)", label, volumes, sum(seconds.values()), stages)
    for warning in record.warnings:
        log.warning("%s: %s", record.case, warning)


@dataclass
class FolderRun:
    """A run over many cases.

    Attributes:
        segmenter: loaded once for all.
        output: folder of the run log.
        log_name: of its file.
        start_up_seconds: from the process's start until the model was ready; goes into the first case's record.
        progress: opens a display for (case, slices); see `predict_case`.
    """

    segmenter: Segmenter
    output: pathlib.Path
    log_name: str = run_log.RUN_LOG
    start_up_seconds: float | None = 0.0
    progress: Callable[[str, int], contextlib.AbstractContextManager[OnSlice]] = lambda label, slices: no_progress(
        slices
    )

    def predict(self, cases: CaseQueue) -> int:
        """Segment every case; one that fails is logged in one line and the others go on. Returns how many failed."""
        failed, start_up_seconds = 0, self.start_up_seconds
        with nvml_reader(self.segmenter.engine.about().gpu_uuid) as read_used_mib:
            if read_used_mib is None:
                log.info("GPU memory: not measured, the run is not on a GPU that NVML knows")
            for number, turn in enumerate(cases, 1):
                case = turn.case
                label = f"[{number}/{cases.total}] {case.name}"
                if case.scan.not_ct:
                    log.info("%s", case.scan.not_ct)
                    self._append(case.ignored())
                    continue
                if skip := turn.skip:
                    log.info("%s: skipped, %s", label, skip.reason)
                    failed += skip.failed_before
                    self._append(skip.record(case))
                    continue
                if cases.is_resumed:
                    note_attempt(case.mask_path, case.name)
                try:
                    record = predict_case(
                        self.segmenter, case, turn.opened, partial(self.progress, label), read_used_mib
                    )
                except BaseException:  # asked to stop: the case is not to blame
                    clear_failure(case.mask_path)
                    raise
                report(label, record)
                record.seconds["start_up"] = None if start_up_seconds is None else round(start_up_seconds, 3)
                start_up_seconds = 0.0
                failed += record.status != "done"
                self._append(record)
        return failed

    def _append(self, record: CaseRecord) -> None:
        try:
            run_log.append(self.output, record, self.log_name)
        except OSError as error:
            log.warning("%s: not written (%s)", self.output / self.log_name, error.strerror)
