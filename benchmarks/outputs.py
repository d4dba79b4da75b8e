"""python -m benchmarks.outputs: what each output adds to a run, in time and memory, against the mask alone.

Whole processes in turn; the scan is the phantom as a DICOM series of 512 x 512 x 100.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

from app.results import RESULTS, make_results
from benchmarks.processes import in_turn, phantom_scan
from benchmarks.reading import dicom_series


def main() -> None:
    """Print a row for each output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("cache/bench"), help="For test volumes.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    scan = dicom_series(phantom_scan(args.scratch), args.scratch / "outputs")
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:  # of its own: each output is known by its name
        plain = ["-m", "app", str(scan), folder, "--device", "cpu", "--model", "fast", "--save", "nifti"]
        outputs = [name for name in RESULTS if pattern(name) != pattern("nifti")]
        alone, *others = in_turn([plain, *([*plain, "--save", name] for name in outputs)], args.rounds)
        print("| output | seconds more | MiB more | file, KiB |\n|---|---|---|---|")
        size = _kib(folder, "nifti")
        print(f"| nifti alone | ({alone.seconds:.1f} in all) | ({alone.peak_mib:.0f} in all) | {size} |")
        for name, cost in zip(outputs, others, strict=True):
            size = _kib(folder, name)
            print(f"| {name} | {cost.seconds - alone.seconds:+.1f} | {cost.peak_mib - alone.peak_mib:+.0f} | {size} |")


def pattern(output: str) -> str:
    """Of the names of the files that an output writes, whatever the case."""
    return make_results([output])[output].path(pathlib.Path("*"), None).name


def _kib(folder: str, output: str) -> str:
    (path,) = pathlib.Path(folder).glob(pattern(output))
    return f"{path.stat().st_size / 1024:.0f}"


if __name__ == "__main__":
    main()
