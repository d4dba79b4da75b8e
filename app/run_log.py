"""run_log.jsonl: one JSON line per case, in the output folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .segmentation import Segmentation
from .whole_file import whole_file

RUN_LOG = "run_log.jsonl"
SHARD_LOGS = "run_log-*-of-*.jsonl"


@dataclass(kw_only=True)
class Environment:
    """What a case was segmented with, and what it took of the machine; see `CaseRecord`."""

    gpu_peak_mib: dict[str, int | None]
    host_peak_rss_mib: float | None
    device: str
    precision: str
    model: str
    weights_sha256: dict[str, str]
    versions: dict[str, str | None]


@dataclass
class CaseRecord:
    """What the log says of one case; the field names are the log's. None is a figure that could not be had.

    Attributes:
        case: its name.
        status: whether its outputs were written, could not be, or were there already; or whether it is nothing to
            segment. A case of which one output could not be written is failed, and has its figures all the same.
        error: one line for a failed case, and for one that is nothing to segment.
        seconds: start_up (of the process, in its first case), read (time spent waiting for slices), network,
            postprocess, write, total.
        warnings: a sentence each.
        shape: voxels along the stored axes.
        spacing_zyx_mm: distance of slices, rows and columns.
        network_slices: slices that went through the network.
        batch_size: slices that went through it at a time, at most.
        volumes_ml: per organ.
        confidence: of the network in every organ, see docs/OUTPUTS.md; null for an organ that it did not see.
        gpu_peak_mib: by the organisers' rule (`flare2021`), plain (`maximum`), and as torch's allocator has it.
        host_peak_rss_mib: largest resident memory of the process so far.
        device: its name.
        precision: of the network.
        model: its name.
        weights_sha256: of each weights file.
        versions: of this program, the weights, torch, CUDA, OpenVINO and Python; null where one was not used.
        series_uid: of a DICOM series; other scans have no such field.
    """

    case: str
    status: Literal["done", "failed", "skipped", "ignored"] = "done"
    error: str | None = None
    seconds: dict[str, float | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    shape: list[int] | None = None
    spacing_zyx_mm: list[float] | None = None
    network_slices: int | None = None
    batch_size: int | None = None
    volumes_ml: dict[str, float] | None = None
    confidence: dict[str, float | None] | None = None
    gpu_peak_mib: dict[str, int | None] | None = None
    host_peak_rss_mib: float | None = None
    device: str | None = None
    precision: str | None = None
    model: str | None = None
    weights_sha256: dict[str, str] | None = None
    versions: dict[str, str | None] | None = None
    series_uid: str | None = None

    @classmethod
    def of(cls, segmentation: Segmentation, environment: Environment) -> CaseRecord:
        """The record of a case that was segmented."""
        geometry = segmentation.volume.geometry
        confidence = segmentation.confidence
        return cls(
            segmentation.case,
            seconds={stage: round(value, 3) for stage, value in segmentation.seconds.items()},
            warnings=list(segmentation.warnings),
            shape=list(geometry.shape),
            spacing_zyx_mm=[round(mm, 4) for mm in geometry.spacing_zyx_mm],
            network_slices=segmentation.network_slices,
            batch_size=segmentation.batch_size,
            volumes_ml={organ.key: round(ml, 2) for organ, ml in segmentation.volumes_ml.items()},
            confidence={o.key: None if value is None else round(value, 4) for o, value in confidence.items()},
            **vars(environment),
        )

    def as_dict(self) -> dict[str, object]:
        """The fields that a case of this status has: all where it was tried, null where a failure left none."""
        fields = {name: value for name, value in asdict(self).items() if name != "series_uid" or value is not None}
        if self.status in ("skipped", "ignored"):
            kept = ("case", "status", "series_uid", *(("error",) if self.error else ()))
            return {name: fields[name] for name in kept if name in fields}
        return fields


def done_cases(folder: pathlib.Path) -> set[str]:
    """The cases whose results the folder's run log says were written; none where there is no readable log."""
    return {str(record.get("case")) for record in read_records(folder) if record.get("status") == "done"}


def read_records(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a folder's run log, then of its shards' logs; those that were cut short are left out."""
    lines = []
    for path in (folder / RUN_LOG, *sorted(folder.glob(SHARD_LOGS))):
        with contextlib.suppress(OSError):
            lines += path.read_text(errors="replace").splitlines()
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def rewrite(folder: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the run log by these records, whole or not at all.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    with whole_file(folder / RUN_LOG) as stream:
        for record in records:
            stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def append(folder: pathlib.Path, record: CaseRecord, name: str = RUN_LOG) -> None:
    """Append a record as one whole line, or nothing; lines of several processes do not mix.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    line = json.dumps(record.as_dict(), allow_nan=False).encode() + b"\n"
    descriptor = os.open(folder / name, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        is_locked = False
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_locked = True
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a line that was cut short stays alone
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):
            if is_locked:
                os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
