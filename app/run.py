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

import torch

from . import run_log
from .cases import Case, CaseQueue, Opened, open_case
from .errors import AppError
from .failures import clear_failure, note_attempt, note_failure
from .gpu_memory import MIB, MemorySampler, nvml_reader, peak_flare2021
from .host import peak_rss_mib
from .inference.labelling import OnSlice
from .results import Segmented
from .results.gathering import Gathering
from .run_log import CaseRecord
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
        progress: opens a display for so many slices, and gives a function to call as slices are done.
        read_used_mib: gives the GPU memory in use; None without a GPU.
    """
    begin = time.perf_counter()
    if segmenter.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(segmenter.model.device)
    record = CaseRecord(case.name, series_uid=case.scan.series_uid)
    with MemorySampler(read_used_mib) as sampler:
        try:
            _segment_and_write(segmenter, case, opened, progress, record)
        except Exception as error:  # whatever is wrong with one case, the others go on
            known = isinstance(error, AppError)
            record.status = "failed"
            record.error = str(error) if known else f"{case.scan.path}: unexpected {type(error).__name__}: {error}"
            note_failure(case.mask_path, case.name, record.error)
            log.debug("%s", case.name, exc_info=error)
        else:
            clear_failure(case.mask_path)
    record.seconds["total"] = round(time.perf_counter() - begin, 3)
    _add_environment(record, segmenter, sampler.samples_mib)
    return record


def _segment_and_write(
    segmenter: Segmenter, case: Case, opened: Opened | None, progress: Progress, record: CaseRecord
) -> None:
    """Read, segment and write one case, and note in the record what the log says of it."""
    volume, slices = opened.result() if opened else open_case(case)
    geometry = volume.geometry
    needs_scan = any(output.needs_scan for output in case.results.values())
    gathering = Gathering(geometry) if needs_scan else None
    with progress(geometry.shape_zyx[0]) as on_slice:
        result = segmenter.segment_volume(volume, slices, on_slice, gathering)
    begin = time.perf_counter()
    config = segmenter.model.config
    segmented = Segmented(
        volume,
        result.mask,
        config.name,
        config.version,
        segmenter.sha256,
        case.name,
        gathering,
        result.components_removed,
        result.confidence,
        result.check,
        result.warnings,
    )
    case.mask_path.parent.mkdir(parents=True, exist_ok=True)  # a folder of the mirrored tree
    for name, path in case.outputs.items():
        case.results[name].write(segmented, path)
    seconds = result.seconds | {"write": time.perf_counter() - begin}
    record.shape = list(geometry.shape)
    record.spacing_zyx_mm = [round(mm, 4) for mm in geometry.spacing_zyx_mm]
    record.network_slices, record.batch_size = result.findings.network_slices, result.batch_size
    record.seconds = {stage: round(value, 3) for stage, value in seconds.items()}
    record.volumes_ml = {organ.key: round(ml, 2) for organ, ml in result.volumes_ml.items()}
    record.confidence = {
        organ.key: None if value is None else round(value, 4) for organ, value in result.confidence.items()
    }
    record.warnings = list(result.warnings)


def _add_environment(record: CaseRecord, segmenter: Segmenter, samples_mib: Sequence[int]) -> None:
    """Note memory, device, versions and weights; null where there is no GPU."""
    model = segmenter.model
    on_gpu = model.device.type == "cuda"
    record.gpu_peak_mib = {
        "flare2021": peak_flare2021(samples_mib),
        "maximum": max(samples_mib, default=None),
        "torch": round(torch.cuda.max_memory_reserved(model.device) / MIB) if on_gpu else None,
    }
    record.host_peak_rss_mib = peak_rss_mib()
    record.device = torch.cuda.get_device_name(model.device) if on_gpu else f"CPU ({platform.machine()})"
    record.precision = str(model.dtype).removeprefix("torch.")
    record.model = model.config.name
    record.weights_sha256 = segmenter.sha256
    record.versions = {
        "app": __version__,
        "weights": model.config.version,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
    }


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
        with nvml_reader(self._gpu_uuid()) as read_used_mib:
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

    def _gpu_uuid(self) -> str | None:
        device = self.segmenter.model.device
        return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None

    def _append(self, record: CaseRecord) -> None:
        try:
            run_log.append(self.output, record, self.log_name)
        except OSError as error:
            log.warning("%s: not written (%s)", self.output / self.log_name, error.strerror)
