"""From cases to masks: the story of one case, and the isolation of a failing one."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from app import __version__, run_log
from app.cases import Case, CaseQueue, Opened
from app.components import organ_voxels
from app.gpu_memory import MIB, MemorySampler, nvml_reader, peak_flare2021
from app.model import SegmentError
from app.scan import ScanError, write_mask
from app.segment import Findings, OnSlice
from app.segmenter import Segmenter

log = logging.getLogger("app")

Progress = Callable[[str, int], contextlib.AbstractContextManager[OnSlice]]
NOT_HU_HIGHEST = 100  # a CT in HU reaches beyond: contrast and bone


@dataclass
class FolderRun:
    """A run over many cases.

    Attributes:
        segmenter: loaded once for all.
        output: folder of masks and run log.
        start_up_seconds: from the process's start until the model was ready; goes into the first case's record.
        progress: opens a display for (case, slices) and gives a function to call as slices are done.
    """

    segmenter: Segmenter
    output: pathlib.Path
    start_up_seconds: float = 0.0
    progress: Progress = field(default=lambda name, slices: contextlib.nullcontext(lambda count: None))

    def predict(self, cases: CaseQueue) -> int:
        """Segment every case; one that fails is logged in one line and the others go on. Returns how many failed."""
        failed, start_up_seconds = 0, self.start_up_seconds
        with nvml_reader(self._gpu_uuid()) as read_used_mib:
            if read_used_mib is None:
                log.info("GPU memory: not measured, the run is not on a GPU that NVML knows")
            for number, (case, opened) in enumerate(cases, 1):
                label = f"[{number}/{cases.total}] {case.name}"
                if opened is None:
                    log.info("%s: skipped, its mask exists", label)
                    self._append({"case": case.name, "status": "skipped"})
                    continue
                record = self._predict_case(case, opened, label, read_used_mib)
                record["seconds"]["start_up"], start_up_seconds = round(start_up_seconds, 3), 0.0
                failed += record["status"] != "done"
                self._append(record)
        return failed

    def _predict_case(
        self, case: Case, opened: Opened, label: str, read_used_mib: Callable[[], int] | None
    ) -> dict[str, Any]:
        begin = time.perf_counter()
        if self.segmenter.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.segmenter.model.device)
        record: dict[str, Any] = {"case": case.name, "status": "done", "error": None, "seconds": {}, "warnings": []}
        with MemorySampler(read_used_mib) as sampler:
            try:
                record |= self._segment_and_write(case, opened, label)
            except Exception as error:  # whatever is wrong with one case, the others go on
                known = isinstance(error, ScanError | SegmentError)
                message = str(error) if known else f"{case.scan_path}: unexpected {type(error).__name__}: {error}"
                record |= {"status": "failed", "error": message}
                log.error("%s", message)
                log.debug("%s", label, exc_info=error)
        for warning in record["warnings"]:
            log.warning("%s: %s", case.name, warning)
        record["seconds"]["total"] = round(time.perf_counter() - begin, 3)
        return record | self._environment(sampler.samples_mib)

    def _segment_and_write(self, case: Case, opened: Opened, label: str) -> dict[str, Any]:
        """Read, segment and write one case; what the log says of it."""
        scan, slices = opened.result()
        with self.progress(label, scan.shape_zyx[0]) as on_slice:
            result = self.segmenter.segment_scan(scan, slices, on_slice)
        begin = time.perf_counter()
        write_mask(result.mask, scan, case.mask_path)
        seconds = result.seconds | {"write": time.perf_counter() - begin}
        voxel_ml = float(np.prod(scan.spacing_zyx_mm)) / 1000
        volumes = {organ.name.lower(): round(n * voxel_ml, 2) for organ, n in organ_voxels(result.mask).items()}
        text = ", ".join(f"{organ} {ml:.0f} ml" for organ, ml in volumes.items())
        stages = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
        log.info("%s: %s; %.1f s (%s)", label, text, sum(seconds.values()), stages)
        return {
            "shape": list(scan.shape),
            "spacing_zyx_mm": [round(mm, 4) for mm in scan.spacing_zyx_mm],
            "network_slices": result.findings.network_slices,
            "batch_size": result.findings.batch_size,
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "volumes_ml": volumes,
            "warnings": [*scan.warnings, *_doubts(result.findings, volumes)],
        }

    def _environment(self, samples_mib: Sequence[int]) -> dict[str, Any]:
        """Memory, device, versions and weights, for the record; null where there is no GPU."""
        device = self.segmenter.model.device
        on_gpu = device.type == "cuda"
        return {
            "gpu_peak_mib": {
                "flare2021": peak_flare2021(samples_mib),
                "maximum": max(samples_mib, default=None),
                "torch": round(torch.cuda.max_memory_reserved(device) / MIB) if on_gpu else None,
            },
            "host_peak_rss_mib": run_log.peak_rss_mib(),
            "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
            "precision": str(self.segmenter.model.dtype).removeprefix("torch."),
            "model": self.segmenter.model.config.name,
            "weights_sha256": self.segmenter.sha256,
            "versions": {
                "app": __version__,
                "weights": self.segmenter.model.config.version,
                "torch": torch.__version__,
                "cuda": torch.version.cuda if on_gpu else None,
                "python": platform.python_version(),
            },
        }

    def _gpu_uuid(self) -> str | None:
        device = self.segmenter.model.device
        return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None

    def _append(self, record: dict[str, Any]) -> None:
        try:
            run_log.append(self.output, record)
        except OSError as error:
            log.warning("%s: not written (%s)", self.output / run_log.RUN_LOG, error.strerror)


def _doubts(findings: Findings, volumes_ml: dict[str, float]) -> Iterator[str]:
    """What a user should know about a result that was written all the same."""
    if findings.lowest_hu >= 0 or findings.highest_hu < NOT_HU_HIGHEST:
        yield (
            f"intensities {findings.lowest_hu}..{findings.highest_hu} do not look like Hounsfield units "
            "(air near -1000, bone above 300); check the scan's rescaling, the mask may be wrong"
        )
    missing = [organ for organ, ml in volumes_ml.items() if ml == 0]
    if missing:
        yield f"no {', no '.join(missing)} found; check that this is an abdominal CT"
