"""Mutated NIfTI files and DICOM series through the readers, and some NIfTI through the whole command line.

    python -m tests.fuzz [--count 10000] [--series 2000] [--whole 100] [--seed 0]       (make fuzz)

Every input must give slices or one of our own errors, in one line, within 2 s and without taking more memory than twice
what the file honestly holds; and the command line must leave no file under a final name for a case that failed. An
input that does not is kept in the folder `reports/fuzz` for the next person. What happens to whole series, and what is
right for them, is in fuzz_series.py.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import pathlib
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import nibabel as nib
import numpy as np
from click.testing import CliRunner
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from app.cli import main as command_line
from app.errors import VolumeError
from app.failures import EXTENSION
from app.volumes import find_scans
from phantom.dicom import write_series
from tests.fuzz_series import fuzz_series

SHAPE = (24, 20, 6)
SECONDS = 2.0
SPARE_BYTES = 12 << 20  # beside twice the honest size: the reader's buffers, whose size is fixed
HEADER_BYTES = {1: 352, 2: 544}
# Fields of the header that decide something: offset and struct format, for NIfTI-1 and NIfTI-2.
FIELDS: dict[int, list[tuple[int, str]]] = {
    1: [
        *((0, "i"), (40, "8h"), (70, "h"), (72, "h"), (76, "8f"), (108, "f"), (112, "2f"), (123, "B"), (252, "2h")),
        *((256, "6f"), (280, "12f"), (344, "4s")),
    ],
    2: [
        *((0, "i"), (12, "h"), (14, "h"), (16, "8q"), (104, "8d"), (168, "q"), (176, "2d"), (344, "2i"), (352, "6d")),
        *((400, "12d"), (500, "i"), (4, "8s")),
    ],
}
SPECIAL: dict[str, list[float]] = {
    "f": [0.0, -1.0, 1.0, 2.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 1e-3, 1e3, 347.0],
    "i": [0, -1, 1, 2, 3, 7, 127, -32768, 32767, 255, 16, 1024],
}


class TooLongError(Exception):
    """An input took more than its time."""


def base_files() -> list[tuple[int, str, bytes]]:
    """Small honest files: version, byte order, content."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
    affine = np.diag([-5.0, -5.0, 12.0, 1.0])
    found = []
    for version, kind in ((1, nib.Nifti1Image), (2, nib.Nifti2Image)):
        for order in "<>":
            image = kind(voxels, affine)
            image.set_qform(affine, code=1)
            header = image.header if order == "<" else image.header.as_byteswapped(">")
            found.append((version, order, kind(voxels, affine, header).to_bytes()))
    return found


def mutate(rng: random.Random, version: int, order: str, content: bytes) -> bytes:
    """One to three mutations of a file's plain content."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(["special", "special", "special", "byte", "bit", "truncate", "append"])
        if kind == "special":
            offset, form = rng.choice(FIELDS[version])
            count, code = int(form[:-1] or 1), form[-1]
            size = struct.calcsize(code)
            place = offset + size * rng.randrange(count)
            if code in "fd":
                data[place : place + size] = struct.pack(order + code, rng.choice(SPECIAL["f"]))
            elif code in "hiqB":
                low, high = (0, 255) if code == "B" else (-(1 << (8 * size - 1)), (1 << (8 * size - 1)) - 1)
                value = rng.choice([*SPECIAL["i"], low, high])
                data[place : place + size] = struct.pack(order + code, min(max(value, low), high))
            else:
                data[place : place + count] = rng.randbytes(count)
        elif kind == "byte" and data:
            data[rng.randrange(min(len(data), HEADER_BYTES[version]))] = rng.randrange(256)
        elif kind == "bit" and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "truncate":
            del data[rng.randrange(len(data) + 1) :]
        else:
            data += rng.randbytes(rng.choice([1, 8, 100, 5000]))
    return bytes(data)


def compress(rng: random.Random, data: bytes) -> bytes:
    """As gzip, and in a third of the cases mutated once more."""
    packed = bytearray(gzip.compress(data, 1))
    kind = rng.choice(["none", "none", "none", "none", "bit", "truncate", "append"])
    if kind == "bit":
        packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del packed[rng.randrange(len(packed)) :]
    elif kind == "append":
        packed += rng.choice([b"\0" * 100, rng.randbytes(50), b"\x1f\x8b"])
    return bytes(packed)


def inputs(seed: int) -> Iterator[tuple[str, bytes, int]]:
    """Endless (name, content, honest size)."""
    rng = random.Random(seed)
    bases = base_files()
    number = 0
    while True:
        version, order, content = rng.choice(bases)
        data = mutate(rng, version, order, content)
        packed = rng.random() < 0.5
        yield f"{number:06d}_0000.nii{'.gz' if packed else ''}", compress(rng, data) if packed else data, len(data)
        number += 1


def limited(call: Callable[[], str]) -> str:
    """What a call answers, in its time and in one line."""

    def ring(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def read(path: pathlib.Path) -> str:
    """Read every scan of a file or folder to its end: `read`, or `refused` in one line that names it."""
    outcome = "read"
    for scan in find_scans(path):
        try:
            volume = scan.open()
            seen = sum(1 for _ in volume.slices())
            assert seen == volume.geometry.shape_zyx[0], "not every slice came"
        except VolumeError as error:
            line = str(error)
            assert str(path) in line, f"the line does not name its file: {line}"
            assert "\n" not in line, f"more than a line: {line!r}"
            outcome = "refused"
    return outcome


Inputs = Iterator[tuple[str, dict[str, bytes], int]]  # name, files, honest size


def nifti_inputs(seed: int) -> Inputs:
    """Endless mutated NIfTI files."""
    for name, content, honest in inputs(seed):
        yield name, {name: content}, honest


def dicom_inputs(seed: int) -> Inputs:
    """Endless series of four slices, one file of which is mutated."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        voxels = np.random.default_rng(0).integers(-1000, 1000, (*SHAPE[:2], 4)).astype(np.int16)
        series = []
        for number, syntax in enumerate((ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless)):
            paths = write_series(pathlib.Path(scratch) / str(number), voxels, (5.0, 5.0, 12.0), syntax=syntax)
            series.append({path.name: path.read_bytes() for path in paths})
    number = 0
    while True:
        files = dict(rng.choice(series))
        name = rng.choice(sorted(files))
        data = bytearray(files[name])
        for _ in range(rng.choice([1, 1, 2, 5])):
            kind = rng.choice(["byte", "byte", "bit", "truncate", "append", "swap"])
            if kind == "truncate":
                del data[rng.randrange(len(data) + 1) :]
            elif kind == "append":
                data += rng.randbytes(rng.choice([1, 100]))
            elif len(data) > 200:
                place = rng.randrange(128, len(data) if rng.random() < 0.3 else min(len(data), 1400))
                data[place] = data[rng.randrange(len(data))] if kind == "swap" else rng.randrange(256)
        files[name] = bytes(data)
        yield f"{number:06d}", files, sum(map(len, files.values()))
        number += 1


def fuzz_reader(
    folder: pathlib.Path, source: Inputs, count: int, keep: pathlib.Path
) -> tuple[collections.Counter[str], int]:
    """Outcomes of so many inputs, and how many broke a rule; those are kept."""
    outcomes: collections.Counter[str] = collections.Counter()
    broken = 0
    tracemalloc.start()
    for (name, files, honest), _ in zip(source, range(count), strict=False):
        place = folder / "input"
        place.mkdir()
        for file, content in files.items():
            (place / file).write_bytes(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            outcome = limited(partial(read, place))
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak <= 2 * honest + SPARE_BYTES, f"{peak} bytes for a file that holds {honest}"
        except (Exception, TooLongError) as error:
            broken += 1
            outcome = f"BROKEN {type(error).__name__}"
            shutil.copytree(place, keep / name, dirs_exist_ok=True)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        outcomes[outcome] += 1
        shutil.rmtree(place)
    tracemalloc.stop()
    return outcomes, broken


def fuzz_whole(folder: pathlib.Path, count: int, seed: int, options: list[str]) -> tuple[collections.Counter[str], int]:
    """The same for the command line over a folder of inputs, with the bundled model unless `options` say otherwise."""
    source, output = folder / "in", folder / "out"
    source.mkdir()
    for (name, content, _), _ in zip(inputs(seed + 1_000_000), range(count), strict=False):
        (source / name).write_bytes(content)
    result = CliRunner().invoke(command_line, [str(source), str(output), "--device", "cpu", *options])
    records = [json.loads(line) for line in (output / "run_log.jsonl").read_text().splitlines()]
    outcomes = collections.Counter(record["status"] for record in records)
    done = {record["case"] for record in records if record["status"] == "done"}
    files = {path.name for path in output.iterdir() if not path.name.endswith(EXTENSION)} - {"run_log.jsonl"}
    broken = sum("unexpected" in (record["error"] or "") for record in records)
    broken += len({name.removesuffix(".nii.gz") for name in files} ^ done)
    broken += len(records) != count
    broken += result.exit_code not in (0, 1)
    for record in records:
        if "unexpected" in (record["error"] or ""):
            print(record["error"], file=sys.stderr)
    return outcomes, broken


def main() -> None:
    """Print what came of all inputs; exit status 1 if a rule was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=10_000, help="NIfTI files for the reader, and a tenth as many damaged DICOM files"
    )
    parser.add_argument("--series", type=int, default=2000, help="folders of DICOM series to which something happened")
    parser.add_argument("--whole", type=int, default=100, help="inputs for the command line")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory() as scratch:
        for kind, source, count in (
            ("NIfTI", nifti_inputs(args.seed), args.count),
            ("DICOM", dicom_inputs(args.seed), args.count // 10),
        ):
            begin = time.perf_counter()
            outcomes, wrong = fuzz_reader(pathlib.Path(scratch), source, count, pathlib.Path("reports/fuzz") / kind)
            print(f"{kind}: {count} inputs in {time.perf_counter() - begin:.0f} s: {dict(outcomes)}")
            broken += wrong
        begin = time.perf_counter()
        kept = pathlib.Path("reports/fuzz/series")
        outcomes, rules, wrong = fuzz_series(pathlib.Path(scratch), args.series, args.seed, kept)
        print(f"series: {args.series} folders in {time.perf_counter() - begin:.0f} s: {dict(outcomes)}")
        print(f"series: {wrong} folders broke a rule: {dict(rules)}")
        broken += wrong
        if args.whole:
            outcomes, wrong = fuzz_whole(pathlib.Path(scratch), args.whole, args.seed, [])
            print(f"command line: {args.whole} inputs: {dict(outcomes)}")
            broken += wrong
    print(f"rules broken: {broken}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
