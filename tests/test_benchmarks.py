"""The benchmarks' programs run, on a scan that is too small to tell anything."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import pytest

from benchmarks import outputs
from benchmarks.processes import Cost
from benchmarks.reading import reading
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
