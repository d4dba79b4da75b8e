"""The run log: a line per case, whole or not there."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from app.run_log import RUN_LOG, CaseRecord, append, done_cases
from tests.conftest import ROOT


@pytest.mark.parametrize("room", [1, 50, 200])
def test_a_line_of_the_log_is_whole_or_not_there(tmp_path: pathlib.Path, room: int) -> None:
    """The disk is full in the middle of a line; then there is room again."""
    log, first = tmp_path / RUN_LOG, CaseRecord("a", seconds={"total": 1.0})
    append(tmp_path, first)
    size = log.stat().st_size
    code = f"""
import pathlib, resource
from app.run_log import CaseRecord, append
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + room}, {size + room}))
try:
    append(pathlib.Path({str(tmp_path)!r}), CaseRecord("b" * 500))
except OSError as error:
    print(error.strerror)
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() in ("No space left on device", "File too large")
    append(tmp_path, CaseRecord("c"))
    assert [json.loads(line)["case"] for line in log.read_text().splitlines()] == ["a", "c"]


def test_a_line_that_was_cut_stays_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / RUN_LOG).write_text('{"case": "cut", "sta')
    append(tmp_path, CaseRecord("whole"))
    assert json.loads((tmp_path / RUN_LOG).read_text().splitlines()[1])["case"] == "whole"
    assert done_cases(tmp_path) == {"whole"}
