"""Fresh processes, timed as a whole, and the volumes they are given."""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from isal import igzip

from app.host import peak_rss_mib
from phantom import make_phantom

ROOT = pathlib.Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.005
SHAPE, SPACING_MM = (512, 512, 100), (0.8, 0.8, 3.0)


class BenchmarkError(Exception):
    """A process that was to be measured failed."""


@dataclass(frozen=True)
class Cost:
    """What a process took from its start to its end: wall seconds, processor seconds, peak resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def run_fresh(words: Sequence[str]) -> Cost:
    """Run Python with these arguments in a fresh process.

    Its peak memory is read while it runs: the kernel's figure of a finished process starts at its parent's size.

    Raises:
        BenchmarkError: it failed.
    """
    with tempfile.TemporaryFile("w+") as errors:
        begin, before, peak = time.monotonic(), os.times(), 0.0
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, peak_rss_mib(process.pid) or 0.0)
            time.sleep(POLL_SECONDS)
        seconds, after = time.monotonic() - begin, os.times()
        if process.returncode:
            errors.seek(0)
            raise BenchmarkError(f"{' '.join(words)[:200]}: exit {process.returncode}: {errors.read()[-400:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(seconds, cpu, peak)


def in_turn(commands: Sequence[Sequence[str]], rounds: int) -> list[Cost]:
    """Run several commands in turn, A B A B ..., and give the median of each."""
    costs = [[run_fresh(words) for words in commands] for _ in range(rounds)]
    return [
        Cost(*(statistics.median(getattr(cost, name) for cost in column) for name in Cost.__annotations__))
        for column in zip(*costs, strict=True)
    ]


def phantom_scan(folder: pathlib.Path) -> pathlib.Path:
    """A phantom of 512 x 512 x 100 voxels of 0.8 x 0.8 x 3 mm, written once."""
    path = folder / "phantom_0000.nii.gz"
    if not path.exists():
        write_scan(path, make_phantom(SHAPE, SPACING_MM)[0], SPACING_MM, range(SHAPE[2]))
    return path


def middle_scan(folder: pathlib.Path, depth: int) -> pathlib.Path:
    """The middle slices of the phantom."""
    path = folder / f"middle_{depth}_0000.nii.gz"
    if not path.exists():
        image = np.asarray(nib.load(phantom_scan(folder)).dataobj)
        first = SHAPE[2] // 2 - depth // 2
        write_scan(path, image, SPACING_MM, range(first, first + depth))
    return path


def long_scan(folder: pathlib.Path, depth: int) -> pathlib.Path:
    """A scan of this many slices of 1 mm: the phantom, each slice three times, and below it its lowest slice."""
    path = folder / f"long_{depth}_0000.nii.gz"
    if not path.exists():
        rows = np.minimum(np.arange(depth) // 3, SHAPE[2] - 1)[::-1]
        image = np.asarray(nib.load(phantom_scan(folder)).dataobj)[:, :, ::-1]
        write_scan(path, image, (0.8, 0.8, 1.0), rows.tolist())
    return path


def turned_scan(folder: pathlib.Path, depth: int) -> pathlib.Path:
    """The same scan, stored with its slices as the fastest axis, so that they cannot be streamed."""
    path = folder / f"turned_{depth}_0000.nii.gz"
    if not path.exists():
        image = nib.load(long_scan(folder, depth))
        turned = np.asarray(image.dataobj).transpose(2, 0, 1)
        nib.save(nib.Nifti1Image(turned, image.affine[:, [2, 0, 1, 3]]), path)
    return path


def write_scan(path: pathlib.Path, image: np.ndarray, spacing_mm: Sequence[float], rows: Sequence[int]) -> None:
    """Write these slices (x, y, z) of an image as .nii.gz, in LPS order, without holding the volume they make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*image.shape[:2], len(rows)))
    header.set_sform(np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0]), code=1)
    header["pixdim"][1:4] = spacing_mm
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    partial = path.with_suffix(".partial")
    with igzip.open(partial, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for z in rows:
            stream.write(image[:, :, z].astype(np.int16).tobytes(order="F"))
    partial.rename(path)
