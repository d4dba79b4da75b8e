"""From a folder of scans to a folder of masks: the story of one case, and the isolation of a failing one."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from app import __version__, run_log
from app.components import organ_voxels
from app.gpu_memory import MIB, MemorySampler, nvml_reader, peak_flare2021
from app.scan import ScanError, mask_name, open_scan, write_mask
from app.segment import Findings, OnSlice, SegmentError
from app.segmenter import Segmenter

log = logging.getLogger("app")

Progress = Callable[[str, int], contextlib.AbstractContextManager[OnSlice]]
NOT_HU_HIGHEST = 100  # a CT in HU reaches beyond: contrast and bone


class InputError(Exception):
    """The input or output folder cannot be used at all; the message says why and what to do."""


@dataclass(frozen=True)
class Case:
    """One scan and where its mask goes; `problem` says why it cannot be done, if that is known beforehand."""

    name: str
    scan_path: pathlib.Path
    mask_path: pathlib.Path
    problem: str | None = None


def find_cases(source: pathlib.Path, output: pathlib.Path) -> list[Case]:
    """The scans of a folder (not of its subfolders), or the one file, and where their masks go.

    Raises:
        InputError: there is nothing to segment, or the output folder cannot be used.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a .nii.gz file or a folder of them")
    if output.is_file() or output.name.endswith((".nii.gz", ".nii")):
        raise InputError(f"{output}: OUTPUT is a folder; the mask gets its scan's name without _0000")
    if source.is_dir() and output.is_dir() and source.samefile(output):
        raise InputError(f"{output}: OUTPUT is the input folder; choose another, or masks would be taken for scans")
    try:
        paths = sorted(source.iterdir()) if source.is_dir() else [source]
    except OSError as error:
        raise InputError(f"{source}: cannot be listed ({error.strerror}); check its permissions") from error
    scans = [path for path in paths if path.name.endswith((".nii.gz", ".nii")) and not path.name.startswith(".")]
    if not scans:
        raise InputError(f"{source}: no .nii.gz or .nii file; convert DICOM with dcm2niix")
    cases = [_case(path, output) for path in scans]
    names = Counter(case.mask_path for case in cases)
    return [_clashing(case) if names[case.mask_path] > 1 else case for case in cases]


def _clashing(case: Case) -> Case:
    line = f"{case.scan_path}: another scan would get the same mask name {case.mask_path.name}; rename one"
    return replace(case, problem=line)


def _case(path: pathlib.Path, output: pathlib.Path) -> Case:
    mask_path = output / mask_name(path.name)
    name = mask_path.name.removesuffix(".gz").removesuffix(".nii")
    if mask_path.exists() and mask_path.samefile(path):
        return Case(name, path, mask_path, f"{path}: its mask would overwrite it; choose another OUTPUT folder")
    return Case(name, path, mask_path)


def check_output(folder: pathlib.Path) -> None:
    """Make the output folder, and see that a file can be made in it.

    Raises:
        InputError: it cannot.
    """
    probe = folder / f".{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: not writable ({error.strerror}); check its owner, or docker run --user") from error


@dataclass
class FolderRun:
    """A run over many cases.

    Attributes:
        segmenter: loaded once for all.
        output: folder of masks and run log.
        skip_existing: leave cases alone whose mask is there.
        start_up_seconds: from the process's start until the model was ready; goes into the first case's record.
        progress: opens a display for (case, slices) and gives a function to call as slices are done.
    """

    segmenter: Segmenter
    output: pathlib.Path
    skip_existing: bool = False
    start_up_seconds: float = 0.0
    progress: Progress = field(default=lambda name, slices: contextlib.nullcontext(lambda count: None))

    def predict(self, cases: Sequence[Case]) -> int:
        """Segment every case; one that fails is logged in one line and the others go on. Returns how many failed."""
        failed = 0
        with nvml_reader(self._gpu_uuid()) as read_used_mib:
            if read_used_mib is None:
                log.info("GPU memory: not measured, the run is not on a GPU that NVML knows")
            for index, case in enumerate(cases):
                label = f"[{index + 1}/{len(cases)}] {case.name}"
                if self.skip_existing and case.mask_path.exists():
                    log.info("%s: skipped, its mask exists", label)
                    self._append({"case": case.name, "status": "skipped"})
                    continue
                record = self._predict_case(case, label, read_used_mib)
                record["seconds"]["start_up"] = round(0.0 if index else self.start_up_seconds, 3)
                failed += record["status"] != "done"
                self._append(record)
        return failed

    def _predict_case(self, case: Case, label: str, read_used_mib: Callable[[], int] | None) -> dict[str, Any]:
        begin = time.perf_counter()
        if self.segmenter.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.segmenter.model.device)
        record: dict[str, Any] = {"case": case.name, "status": "done", "error": None, "seconds": {}, "warnings": []}
        with MemorySampler(read_used_mib) as sampler:
            try:
                record |= self._segment_and_write(case, label)
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

    def _segment_and_write(self, case: Case, label: str) -> dict[str, Any]:
        """Read, segment and write one case; what the log says of it."""
        if case.problem:
            raise ScanError(case.problem)
        scan = open_scan(case.scan_path)
        with self.progress(label, scan.shape_zyx[0]) as on_slice:
            result = self.segmenter.segment_scan(scan, on_slice)
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
