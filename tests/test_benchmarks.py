"""The benchmarks' programs run, on a scan that is too small to tell anything."""

from __future__ import annotations

import pathlib
import threading
import time
import types
from collections.abc import Sequence

import pytest

from benchmarks import beside, outputs, tables
from benchmarks.processes import Cost
from benchmarks.reading import reading
from benchmarks.start_up import start_up
from evaluation import machine
from phantom import write_phantom


def test_reading_and_writing_are_compared(tmp_path: pathlib.Path) -> None:
    scan = tmp_path / "scan_0000.nii.gz"
    write_phantom(scan, None, (72, 80, 12), (4.0, 3.5, 20.0))
    found = reading(scan, tmp_path, rounds=1)
    assert set(found) == {"read", "write", "read DICOM"}
    assert all(row["peak_mib"] > 10 and row["plain_peak_mib"] > 10 for row in found.values())


def test_outputs_are_measured_beside_what_other_benchmarks_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_turn(commands: Sequence[Sequence[str]], rounds: int) -> list[Cost]:
        for words in commands:
            folder = pathlib.Path(words[3])
            assert folder.is_dir()
            for name in words[9::2]:
                (folder / outputs.pattern(name).replace("*", "phantom")).write_bytes(b"x" * 2048)
        return [Cost(float(i), 0.0, 100.0) for i in range(len(commands))]

    for name in ("masks/middle.nii.gz", "masks/plain.nii.gz"):  # of `make bench`, into the same scratch folder
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(outputs, "in_turn", in_turn)
    monkeypatch.setattr(outputs, "phantom_scan", lambda folder: folder)
    monkeypatch.setattr(outputs, "dicom_series", lambda scan, folder: folder)
    monkeypatch.setattr("sys.argv", ["outputs", "--scratch", str(tmp_path)])
    outputs.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| nifti alone | (0.0 in all) | (100 in all) | 2 |"
    assert rows[-1] == "| viewer | +6.0 | +0 | 2 |"
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_the_start_is_measured_by_stage(tmp_path: pathlib.Path) -> None:
    scan = tmp_path / "scan_0000.nii.gz"
    write_phantom(scan, None, (32, 32, 2), (8.0, 8.0, 100.0))
    found = start_up(scan, "fast", rounds=1)
    assert found["floor"] == "`import openvino` and reading the weights"
    assert all(seconds > 0 for seconds in found["stages_s"].values())
    assert found["ratio"] == pytest.approx(found["floor_s"] / found["model_ready_s"])


def test_runs_beside_each_other_are_started_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes by one second in every run alone, and in all runs at once together."""
    meetings = [*[None] * 2, *[threading.Barrier(2)] * 2, *[None] * 4, *[threading.Barrier(4)] * 4]  # of every run
    seconds, outputs_of = [0.0], list[str]()
    running = threading.Semaphore(1)

    def run_fresh(words: Sequence[str]) -> Cost:
        outputs_of.append(words[3])
        if meeting := meetings.pop(0):
            if meeting.wait(timeout=60) == 0:  # for the others, who would not come one by one
                seconds[0] += 1
        else:
            assert running.acquire(blocking=False)
            time.sleep(0.05)  # for another that should not come
            seconds[0] += 1
            running.release()
        return Cost(0.2, 0.0, 0.0)

    monkeypatch.setattr(beside, "run_fresh", run_fresh)
    monkeypatch.setattr(beside, "time", types.SimpleNamespace(monotonic=lambda: seconds[0]))
    rows = beside.beside(tmp_path / "scan_0000.nii.gz", "fast")
    assert [tuple(row.values()) for row in rows] == [(2, 2.0, 1.0, 0.5), (4, 4.0, 1.0, 0.25)]
    assert (len(outputs_of), meetings) == (12, [])
    assert tables.beside({"beside": rows}).count("\n") == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse2 avx2 avx512f avx512_bf16 amx_bf16", "AMX"),
        ("avx2 avx512f avx512_bf16", "AVX-512 with bfloat16"),
        ("avx2 avx512f", "AVX-512"),
        ("sse2 avx2", "AVX2"),
        ("sse2", None),
    ],
)
def test_a_machine_is_named_with_its_best_instructions(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str | None
) -> None:
    about = tmp_path / "cpuinfo"
    about.write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags} erms\n" * 2)
    monkeypatch.setattr(machine, "CPU_INFO", about)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert machine.processor() == (f"Some CPU (x86_64, {expected})" if expected else "Some CPU (x86_64)")
