"""What a machine does to a run: kill -9, a full disk, two runs on one folder, many files with few descriptors.

    python -m tests.soak [--kills 200] [--full-disks 100] [--files 2000] [--weights FILE]
                         [--out reports/soak]                                          (make soak)

After every blow each file under a final name must be a whole mask, and each line of the log whole JSON. In the end a
plain run must finish the rest and clear what was left behind. Prints a table, and draws the memory over the cases.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from app.whole_file import PARTIAL, YOUNG_SECONDS
from phantom import write_phantom
from tests.conftest import ROOT

CASES = 6
RESUME = ("--skip-existing", "--retry-failed")  # what a struck run left undone is to be done, though it is on record
DESCRIPTORS = 64
MODEL = ["--model", "fast"]


def make_scans(folder: pathlib.Path, count: int, shape: tuple[int, int, int]) -> None:
    """Phantoms of one shape: a few that differ, then links to them."""
    folder.mkdir(parents=True)
    for i in range(count):
        target = folder / f"scan{i:05d}_0000.nii.gz"
        if i < CASES:
            write_phantom(target, None, shape, (240 / shape[0], 240 / shape[1], 250 / shape[2]), seed=i)
        else:
            shutil.copyfile(folder / f"scan{i % CASES:05d}_0000.nii.gz", target)


def start(
    source: pathlib.Path, output: pathlib.Path, *options: str, limit: tuple[int, int] | None = None
) -> subprocess.Popen[str]:
    """Start the command line; `limit` is a resource and its bound."""
    command = [sys.executable, "-m", "app", str(source), str(output), "--device", "cpu", *MODEL, *options]
    set_limit = None if limit is None else lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=set_limit)


def faults(output: pathlib.Path, masks: dict[str, np.ndarray]) -> list[str]:
    """What is broken in an output folder: masks that are not whole, lines that are no JSON."""
    found = []
    for path in output.glob("[!.]*.nii.gz"):
        try:
            same = np.array_equal(np.asarray(nib.load(path).dataobj), masks[path.name])
        except Exception as error:
            found.append(f"{path.name}: {error}")
        else:
            if not same:
                found.append(f"{path.name}: differs from the mask of a quiet run")
    log = output / "run_log.jsonl"
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            json.loads(line)
        except ValueError:
            found.append(f"run_log.jsonl: {line[:60]!r}")
    return found


def finish(source: pathlib.Path, output: pathlib.Path, masks: dict[str, np.ndarray], *options: str) -> list[str]:
    """What a last, quiet run leaves to be desired."""
    time.sleep(YOUNG_SECONDS + 1)
    process = start(source, output, *options)
    message = process.communicate()[1]
    found = faults(output, masks) + ([] if process.returncode == 0 else [message])
    found += [f"missing: {name}" for name in masks if not (output / name).exists()]
    return found + [f"left behind: {path.name}" for path in output.glob(f".*{PARTIAL}")]


def blows(
    folder: pathlib.Path,
    masks: dict[str, np.ndarray],
    count: int,
    strike: Callable[[pathlib.Path, random.Random], None],
) -> list[str]:
    """Strike so many runs over one output folder, look after each, and finish."""
    output, rng, found = folder / "out", random.Random(0), []
    for _ in range(count):
        strike(output, rng)
        found += faults(output, masks)
        if len(list(output.glob("[!.]*.nii.gz"))) == len(masks):
            shutil.rmtree(output)
    return found + finish(folder / "in", output, masks, *RESUME)


def memory_over_cases(folder: pathlib.Path, count: int, picture: pathlib.Path) -> tuple[list[str], float]:
    """Run over many small files with few descriptors.

    Returns:
        Faults, and the peak memory's growth from a tenth of the cases to the last one, in percent.
    """
    make_scans(folder / "many", count, (24, 24, 4))
    process = start(folder / "many", folder / "many_out", limit=(resource.RLIMIT_NOFILE, DESCRIPTORS))
    message = process.communicate()[1]
    records = [json.loads(line) for line in (folder / "many_out" / "run_log.jsonl").read_text().splitlines()]
    peaks = [record["host_peak_rss_mib"] for record in records]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(peaks) + 1), peaks)
    axes.set(xlabel="case", ylabel="peak memory, MiB", ylim=(0, 1.2 * max(peaks)))
    figure.savefig(picture, dpi=100)
    found = [] if process.returncode == 0 and len(records) == count else [message[-500:]]
    return found, 100 * (peaks[-1] / peaks[len(peaks) // 10] - 1)


def main() -> None:
    """Print what came of everything; exit status 1 if something broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--full-disks", type=int, default=100)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--weights", help="a weights file instead of `fast`")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("reports/soak"))
    args = parser.parse_args()
    if args.weights:
        MODEL[:] = ["--weights", args.weights]
    args.out.mkdir(parents=True, exist_ok=True)
    rows, broken = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        source = folder / "in"
        make_scans(source, CASES, (48, 48, 10))
        begin = time.perf_counter()
        message = start(source, folder / "quiet").communicate()[1]
        seconds = time.perf_counter() - begin
        masks = {p.name: np.asarray(nib.load(p).dataobj) for p in (folder / "quiet").glob("*.nii.gz")}
        assert len(masks) == CASES, message
        bytes_written = max(path.stat().st_size for path in (folder / "quiet").iterdir())

        def kill(output: pathlib.Path, rng: random.Random) -> None:
            process = start(source, output, *RESUME)
            time.sleep(rng.uniform(0, 1.1 * seconds))
            process.kill()
            process.communicate()

        def fill_disk(output: pathlib.Path, rng: random.Random) -> None:
            limit = resource.RLIMIT_FSIZE, rng.randrange(2 * bytes_written)
            start(source, output, *RESUME, limit=limit).communicate()

        for name, count, strike in (
            ("kill -9 at a random moment", args.kills, kill),
            ("disk full at a random byte", args.full_disks, fill_disk),
        ):
            found = blows(folder, masks, count, strike)
            rows.append((name, count, len(found)))
            broken += found
            shutil.rmtree(folder / "out")
        two = [start(source, folder / "out") for _ in range(2)]
        codes = [process.communicate() and process.returncode for process in two]
        found = faults(folder / "out", masks) + [f"exit status {code}" for code in codes if code]
        found += [f"left behind: {path.name}" for path in (folder / "out").glob(f".*{PARTIAL}")]
        rows.append(("two runs on one folder at once", 1, len(found)))
        broken += found
        found, growth = memory_over_cases(folder, args.files, args.out / "memory.png")
        rows.append((f"{args.files} files with {DESCRIPTORS} descriptors", 1, len(found)))
        broken += found
    print("| trouble | times | faults |\n|---|---|---|")
    print("\n".join(f"| {name} | {count} | {faults} |" for name, count, faults in rows))
    print(f"\nPeak memory from a tenth of the {args.files} files to the last: {growth:+.1f} %")
    print("\n".join(broken[:20]), file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
