"""`make soak` at its smallest: at full size it takes an hour, so nobody would notice when it breaks."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from tests.conftest import ROOT


def test_a_kill_a_full_disk_two_runs_and_few_descriptors_leave_no_fault(
    tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    sizes = ["--kills", "1", "--full-disks", "4", "--files", "12"]
    command = [sys.executable, "-m", "tests.soak", *sizes, "--weights", str(tiny_weights), "--out", str(tmp_path)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    rows = [line for line in shown.stdout.splitlines() if line.endswith(" | 0 |")]
    assert len(rows) == 4
    assert (tmp_path / "memory.png").exists()
