"""The policy of a run: which cases are left out, and what the log and the exit status say of each."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil
import threading
from dataclasses import replace

import pytest

from app.cases import Case, find_cases
from app.errors import DeviceError, InputError, VolumeError
from app.failures import ENDED, MOST_ATTEMPTS, Failure, failure_path, note_failure, read_failure
from app.run_log import CaseRecord
from app.volumes import NotCt
from app.work import DONE, SOME_FAILED, Resume, RunLog, attempt, exit_status, settle

RESUMED = Resume(skip_existing=True)
RETRIED = Resume(skip_existing=True, retry_failed=True)


@pytest.fixture
def case(tmp_path: pathlib.Path, phantom_path: pathlib.Path) -> Case:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    shutil.copy(phantom_path, tmp_path / "in" / "a_0000.nii.gz")
    (found,) = find_cases(tmp_path / "in", tmp_path / "out")
    return found


@pytest.mark.parametrize("left", [b"", bytes(300)])
def test_an_attempt_is_counted_over_what_a_crash_left(case: Case, left: bytes) -> None:
    failure_path(case.base).write_bytes(left)
    note_failure(case.base, case.name, Failure("no CT"))
    assert read_failure(case.base) == Failure("no CT")


def test_a_case_is_ignored_skipped_or_to_do(case: Case) -> None:
    assert settle(case, Resume()) is None
    assert settle(case, RESUMED) is None
    scout = replace(case, scan=replace(case.scan, state=NotCt("a localizer")))
    assert settle(scout, Resume()) == CaseRecord("a", "ignored", "a localizer")
    shutil.copy(case.scan.path, case.outputs["nifti"])
    assert settle(case, Resume()) is None
    assert settle(case, RESUMED) == CaseRecord("a", "skipped")


def test_a_case_that_failed_is_left_out_until_it_is_asked_for(case: Case) -> None:
    note_failure(case.base, case.name, Failure("no scan"))
    assert settle(case, Resume()) is None
    assert settle(case, RETRIED) is None
    assert settle(case, RESUMED) == CaseRecord("a", "skipped", "it failed before (no scan); --retry-failed tries again")


def test_a_case_that_ended_its_process_is_tried_some_times(case: Case) -> None:
    for count in range(1, MOST_ATTEMPTS):
        note_failure(case.base, case.name, Failure(ENDED, count))
        assert settle(case, RESUMED) is None
    note_failure(case.base, case.name, Failure(ENDED, MOST_ATTEMPTS))
    assert settle(case, RESUMED) is not None


def test_an_attempt_is_on_record_while_it_lasts_and_a_polite_end_takes_it_back(case: Case) -> None:
    with attempt(case, Resume()):
        assert read_failure(case.base) is None
    with attempt(case, RESUMED):
        assert read_failure(case.base) == Failure(ENDED, 1)
    with pytest.raises(SystemExit), attempt(case, RESUMED):  # noqa: PT012 (the block is what is tested)
        assert read_failure(case.base) == Failure(ENDED, 2)
        raise SystemExit(143)
    assert read_failure(case.base) is None


@pytest.mark.parametrize(
    ("record", "status", "line"),
    [
        (CaseRecord("a"), DONE, "one: ; 0.0 s ()"),
        (CaseRecord("a", "skipped"), DONE, "one: skipped, its mask exists"),
        (CaseRecord("a", "ignored", "a localizer"), DONE, "a localizer"),
        (CaseRecord("a", "skipped", "it failed before"), SOME_FAILED, "one: skipped, it failed before"),
        (CaseRecord("a", "failed", "a.nii: empty"), SOME_FAILED, "a.nii: empty"),
    ],
)
@pytest.mark.parametrize("writable", [True, False])
def test_every_record_is_a_line_and_counts_whether_the_log_can_be_written_or_not(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    record: CaseRecord,
    status: int,
    line: str,
    writable: bool,
) -> None:
    caplog.set_level(logging.INFO, logger="app")
    if not writable:
        (tmp_path / "run_log.jsonl").mkdir()
    log = RunLog(tmp_path)
    log.add(record, "one")
    assert log.exit_status == status
    assert caplog.messages[0] == line
    warning = f"{tmp_path / 'run_log.jsonl'}: not written (Is a directory)"
    assert caplog.messages[1:] == ([] if writable else [warning])
    if writable:
        assert json.loads((tmp_path / "run_log.jsonl").read_text())["status"] == record.status


@pytest.mark.parametrize("error", [InputError("no folder"), VolumeError("no scan"), DeviceError("no card")])
def test_an_error_that_ends_the_run_is_one_line_and_its_class_s_status(
    caplog: pytest.LogCaptureFixture, error: InputError | VolumeError | DeviceError
) -> None:
    def command() -> int:
        raise error

    assert exit_status(command) == error.exit_code
    assert caplog.messages == [str(error)]
    assert exit_status(lambda: SOME_FAILED) == SOME_FAILED


def test_a_limit_of_threads_is_one_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --pids-limit` sets one."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading._start_new_thread", refuse)

    def command() -> int:
        threading.Thread(target=print).start()
        return 0

    assert exit_status(command) == 2
    assert "no thread can be started; raise the limit of processes" in caplog.text
