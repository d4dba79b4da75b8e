"""`make fuzz` at its smallest."""

from __future__ import annotations

import pathlib
import signal

from tests.fuzz import dicom_inputs, fuzz_reader, fuzz_whole, nifti_inputs


def test_mutated_files_break_no_rule(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    for source, count in ((nifti_inputs(1), 300), (dicom_inputs(1), 90)):
        outcomes, broken = fuzz_reader(tmp_path, source, count, tmp_path / "kept")
        assert broken == 0, outcomes
        assert min(outcomes["read"], outcomes["refused"]) > count / 6
    outcomes, broken = fuzz_whole(tmp_path, 20, 1, ["--weights", str(tiny_weights)])
    for number, handler in previous.items():
        signal.signal(number, handler)
    assert broken == 0, outcomes
    assert min(outcomes["done"], outcomes["failed"]) > 3
