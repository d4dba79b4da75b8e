"""Runs in parts: every case once, whatever the parts are called, and what a part leaves behind for the next run."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from app.cli import main, merge
from app.errors import InputError
from app.failures import ENDED, MOST_ATTEMPTS, Failure, failure_path, note_failure, read_failure
from app.run_log import read_records
from app.shards import Shard, best_records
from phantom import write_phantom
from phantom.dicom import write_series
from tests.conftest import ROOT

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "10"}


@dataclass(frozen=True)
class Work:
    """Something of a size."""

    name: str
    size_bytes: int


@given(st.lists(st.integers(0, 10**9), max_size=60), st.integers(1, 9))
def test_every_case_belongs_to_one_shard_and_none_is_overloaded(sizes: list[int], count: int) -> None:
    work = [Work(f"{i}", size) for i, size in enumerate(sizes)]
    parts = [Shard(i, count).pick(work) for i in range(1, count + 1)]
    assert sorted((item for part in parts for item in part), key=lambda item: int(item.name)) == work
    loads = [sum(max(1, item.size_bytes) for item in part) for part in parts]
    assert max(loads) - min(loads) <= max([1, *sizes])  # the largest first, to the least loaded


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", " 1/3"])
def test_what_is_no_shard_is_said(text: str) -> None:
    with pytest.raises(InputError, match="expected I/N, such as 3/8"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 1)),
        (SLURM | {"SLURM_ARRAY_TASK_COUNT": "10"}, (7, 10)),
        ({**SLURM, "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "9", "SLURM_ARRAY_TASK_COUNT": "10"}, (8, 10)),
        (SLURM | {"SLURM_ARRAY_TASK_STEP": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7"}, (1, 1)),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "5"}, (1, 5)),
        ({"JOB_COMPLETION_INDEX": "4"}, (1, 1)),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "9", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}, (10, 10)),
        ({"AWS_BATCH_JOB_ARRAY_SIZE": "10"}, (1, 1)),  # of the job that the others belong to
    ],
)
def test_job_arrays_say_which_shard_it_is(environment: dict[str, str], expected: tuple[int, int]) -> None:
    shard = Shard.from_environment(environment)
    assert (shard.index, shard.count) == expected


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SGE_TASK_ID": "3"}, "SGE_TASK_ID"),
        ({"SGE_TASK_ID": "undefined"}, None),
        ({"PBS_ARRAY_INDEX": "0"}, "PBS_ARRAY_INDEX"),
        ({"PBS_ARRAYID": "0"}, "PBS_ARRAYID"),
        ({"LSB_JOBINDEX": "2"}, "LSB_JOBINDEX"),
        ({"LSB_JOBINDEX": "0"}, None),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX"),
    ],
)
def test_a_task_that_does_all_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str | None
) -> None:
    for name in "ab":
        write_phantom(tmp_path / f"{name}.nii.gz", None, (40, 40, 6), (6.0, 7.0, 40.0))
    arguments = [str(tmp_path), str(tmp_path / "out"), "--list-series"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = f"WARNING: {named} is set: this task of an array does all 2 cases; --shard I/N gives each a part"
    shown = app(*arguments)
    assert shown.returncode == 0
    assert shown.stdout.count("to be segmented") == 2
    assert ("is set" in shown.stderr) == (named is not None)
    assert named is None or line in shown.stderr
    assert "is set" not in app(*arguments, "--shard", "1/1").stderr


def test_an_array_with_gaps_is_refused() -> None:
    with pytest.raises(InputError, match="the array's numbers have gaps"):
        Shard.from_environment(SLURM | {"SLURM_ARRAY_TASK_COUNT": "4"})


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eleven small scans of different sizes, one of them damaged."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(10):
        write_phantom(folder / f"p{i}_0000.nii.gz", None, (40 + 4 * i, 40, 6), (6.0, 7.0, 40.0), seed=i)
    (folder / "poison_0000.nii.gz").write_bytes(b"no scan")
    return folder


def app(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def masks(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_four_shards_at_once_do_what_one_run_does(
    scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    options = ("--weights", tiny_weights, "--device", "cpu")
    whole = app(scans, tmp_path / "whole", *options)
    assert whole.returncode == 1

    def part(i: int) -> int:
        task = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
        return app(scans, tmp_path / "parts", *options, SLURM_ARRAY_TASK_ID=str(i), **task).returncode

    with ThreadPoolExecutor(3) as pool:
        codes = list(pool.map(part, [*range(4), 3]))  # the fourth is started twice
    assert sorted(codes) in ([0] * 4 + [1], [0] * 3 + [1] * 2)
    assert masks(tmp_path / "parts") == masks(tmp_path / "whole")
    result = CliRunner().invoke(merge, [str(tmp_path / "parts")])
    assert result.exit_code == 0, result.output
    for folder in ("parts", "whole"):
        found = best_records(read_records(tmp_path / folder))
        assert [(record["case"], record["status"]) for record in found] == [
            *((f"p{i}", "done") for i in range(10)),
            ("poison", "failed"),
        ]
    lines = (tmp_path / "parts" / "run_log.jsonl").read_text().splitlines()
    assert len(lines) == 11
    assert CliRunner().invoke(merge, [str(tmp_path / "parts")]).exit_code == 0
    assert (tmp_path / "parts" / "run_log.jsonl").read_text().splitlines() == lines


def one_done(folder: pathlib.Path) -> pathlib.Path:
    """An output folder with two logs."""
    folder.mkdir()
    for name, case in (("run_log.jsonl", "a"), ("run_log-0001-of-0002.jsonl", "b")):
        (folder / name).write_text(json.dumps({"case": case, "status": "done"}) + "\n")
    return folder


def test_merge_logs_is_a_command_that_help_shows(tmp_path: pathlib.Path) -> None:
    for arguments in (["--help"], ["-h"]):
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 0
        assert "INPUT OUTPUT" in shown.output
        assert "--skip-existing" in shown.output
        assert "merge-logs OUTPUT" in shown.output
    shown = CliRunner().invoke(main, ["merge-logs", "--help"], prog_name="app")
    assert shown.output.startswith("Usage: app merge-logs [OPTIONS] OUTPUT")
    shown = CliRunner().invoke(main, ["merge-logs", str(one_done(tmp_path / "out"))])
    assert shown.exit_code == 0, shown.output
    assert len((tmp_path / "out" / "run_log.jsonl").read_text().splitlines()) == 2
    assert CliRunner().invoke(main, ["merge-logs"]).exit_code == 2
    assert CliRunner().invoke(main, ["merge-logs", str(tmp_path / "missing")]).exit_code == 2


@pytest.mark.parametrize("kind", ["folder", "file", "dead link"])
def test_a_command_shadows_no_input_of_its_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    output = one_done(tmp_path / "out")
    source = tmp_path / "merge-logs"
    if kind == "folder":
        source.mkdir()
    elif kind == "file":
        source.write_text("not a scan")
    else:
        source.symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["merge-logs", str(output)]).exit_code == 2
    assert "merge-logs: no " in caplog.messages[-1]
    assert len((output / "run_log.jsonl").read_text().splitlines()) == 1
    assert CliRunner().invoke(main, ["./out", "merge-logs"]).exit_code == 2  # never the second word


def test_one_scan_is_not_split_by_an_array(
    scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    """Whoever starts one task per scan gets a mask in every task."""
    task = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "10", "SLURM_ARRAY_TASK_COUNT": "10"}
    shown = app(scans / "p3_0000.nii.gz", tmp_path, "--weights", tiny_weights, SLURM_ARRAY_TASK_ID="7", **task)
    assert shown.returncode == 0
    assert (tmp_path / "p3.nii.gz").exists()


ARRAY = {"MIN": "1", "MAX": "10", "COUNT": "10"}


@pytest.mark.parametrize("task", range(1, 11))
def test_a_task_with_a_patients_folder_does_its_one_scan(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, task: int
) -> None:
    """What lies beside the scan and is no CT does not make it two cases to share out."""
    flat = np.zeros((8, 8, 3), np.int16)
    write_series(tmp_path / "in" / "scan", flat)
    write_series(tmp_path / "in" / "mr", flat, series="mr", Modality="MR")
    write_series(tmp_path / "in" / "localizer", flat[..., :1], series="loc", ImageType=["ORIGINAL", "LOCALIZER"])
    for name, value in (ARRAY | {"ID": str(task)}).items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    shown = CliRunner().invoke(main, [str(tmp_path / "in"), str(tmp_path / "out"), "--list-series"])
    assert "to be segmented" in shown.output


def test_scans_that_an_array_leaves_to_its_other_tasks_are_a_warning(
    scans: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be in a folder that no other task is given."""
    for name, value in (ARRAY | {"ID": "10"}).items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    arguments = [str(scans), str(tmp_path), "--list-series"]
    CliRunner().invoke(main, arguments)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "of 11 cases; the others are left to the other tasks, --shard 1/1 does all here" in warning
    caplog.clear()
    CliRunner().invoke(main, [*arguments, "--shard", "10/10"])
    CliRunner().invoke(main, [*arguments, "--shard", "1/1"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def invoke(*arguments: object) -> int:
    return CliRunner().invoke(main, [str(argument) for argument in arguments]).exit_code


def test_what_failed_is_not_tried_again_unless_asked(
    scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a_0000.nii.gz").write_bytes(b"no scan")
    arguments = (source, output, "--weights", tiny_weights, "--device", "cpu")
    assert invoke(*arguments) == 1
    failure = json.loads((output / "a.failed.json").read_text())
    assert (failure["case"], failure["attempts"]) == ("a", 1)
    assert "a_0000.nii.gz" in failure["error"]
    (source / "a_0000.nii.gz").write_bytes((scans / "p0_0000.nii.gz").read_bytes())  # repaired
    assert invoke(*arguments, "--skip-existing") == 1
    assert not (output / "a.nii.gz").exists()
    assert read_records(output)[-1]["status"] == "skipped"
    assert "failed before" in read_records(output)[-1]["error"]

    def listed(option: str) -> str:
        return CliRunner().invoke(main, [*map(str, arguments), "--list-series", option]).output

    assert "skipped, it failed before (" in listed("--skip-existing")
    assert "to be segmented" in listed("--retry-failed")
    assert invoke(*arguments, "--retry-failed") == 0
    assert "skipped, its outputs exist" in listed("--retry-failed")
    assert (output / "a.nii.gz").exists()
    assert not (output / "a.failed.json").exists()
    assert invoke(*arguments, "--retry-failed") == 0
    assert read_records(output)[-1]["status"] == "skipped"  # done by now


def test_a_case_that_ends_its_process_is_given_up_after_some_attempts(
    scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    """SIGKILL in the middle of a case, again and again; the case is then left alone, and the others are done."""
    code = (
        "import os, signal, sys\nfrom app import run\n"
        "real = run.predict_case\n"
        "def deadly(segmenter, case, *rest):\n"
        "    if case.name == 'p0': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(segmenter, case, *rest)\n"
        "run.predict_case = deadly\nfrom app.cli import main\nmain()\n"
    )
    options = [str(scans), str(tmp_path), "--weights", str(tiny_weights), "--device", "cpu", "--skip-existing"]
    for attempt in range(1, MOST_ATTEMPTS + 1):
        shown = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, check=False)
        assert shown.returncode == -signal.SIGKILL
        failure = read_failure(tmp_path / "p0")
        assert failure == Failure(ENDED, attempt)
        assert failure.may_be_retried == (attempt < MOST_ATTEMPTS)
    shown = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, check=False)
    assert shown.returncode == 1
    assert len(masks(tmp_path)) == 9


def test_a_polite_end_is_no_attempt(scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    code = (
        "import time\nfrom app import run\n"
        "def slow(*_): time.sleep(60)\n"
        "run.predict_case = slow\nfrom app.cli import main\nmain()\n"
    )
    options = [str(scans), str(tmp_path), "--weights", str(tiny_weights), "--device", "cpu", "--skip-existing"]
    process = subprocess.Popen([sys.executable, "-c", code, *options], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if failure_path(tmp_path / "p0").exists():
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.glob("*.failed.json")] == []


def test_a_file_of_others_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.failed.json").write_text("somebody's notes")
    note_failure(tmp_path / "a", "a", Failure("why"))
    assert (tmp_path / "a.failed.json").read_text() == "somebody's notes"


def test_a_list_instead_of_a_folder(scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(f"# two of them\n{scans / 'p1_0000.nii.gz'}\n\n{scans / 'p4_0000.nii.gz'}\n")
    assert invoke(tmp_path / "out", "--list", wanted, "--weights", tiny_weights, "--device", "cpu") == 0
    assert set(masks(tmp_path / "out")) == {"p1.nii.gz", "p4.nii.gz"}
    assert invoke(scans, tmp_path / "out", "--list", wanted) == 2
    wanted.write_text("# nothing\n")
    assert invoke(tmp_path / "out", "--list", wanted) == 2
    assert invoke(tmp_path / "out") == 2


def test_more_shards_than_cases(scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("p0", "p1", "poison"):
        os.link(scans / f"{name}_0000.nii.gz", few / f"{name}_0000.nii.gz")
    codes = [
        invoke(few, tmp_path / "out", "--shard", f"{i}/5", "--weights", tiny_weights, "--device", "cpu")
        for i in range(1, 6)
    ]
    assert sorted(codes) == [0] * 4 + [1]
    assert len(masks(tmp_path / "out")) == 2


def test_records_that_count() -> None:
    def record(case: str, status: str) -> dict[str, object]:
        return {"case": case, "status": status}

    told = [
        record("b", "failed"),
        record("b", "done"),
        record("a", "done"),
        record("a", "skipped"),
        record("c", "failed"),
    ]
    assert [one["status"] for one in best_records(told)] == ["done", "done", "failed"]


def test_masks_differ_in_nothing_but_their_time(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    """Gzip files carry no time here, so that a repeated case gives the very same bytes."""
    write_phantom(tmp_path / "in" / "a_0000.nii.gz", None, (40, 40, 6), (6.0, 7.0, 40.0))
    for name in ("one", "two"):
        assert invoke(tmp_path / "in", tmp_path / name, "--weights", tiny_weights, "--device", "cpu") == 0
    assert masks(tmp_path / "one") == masks(tmp_path / "two")
    assert len(np.unique(np.asarray(nib.load(tmp_path / "one" / "a.nii.gz").dataobj))) > 1


def test_a_shard_without_ct_is_no_usage_error(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    """One shard gets the localizer, the other the scan."""
    write_phantom(tmp_path / "in" / "p_0000.nii.gz", None, (40, 40, 6), (6.0, 7.0, 40.0))
    flat = np.zeros((8, 8, 2), np.int16)
    write_series(tmp_path / "in" / "localizer", flat, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    codes = [
        invoke(tmp_path / "in", tmp_path / "out", "--shard", f"{i}/2", "--weights", tiny_weights, "--device", "cpu")
        for i in (1, 2)
    ]
    assert codes == [0, 0]
    assert {record["status"] for record in read_records(tmp_path / "out")} == {"done", "ignored"}


def test_a_shard_without_a_log_is_named(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """A task of an array that never ran leaves nothing else behind."""
    for index in (1, 3):
        (tmp_path / Shard(index, 4).log_name).write_text(json.dumps({"case": f"{index}", "status": "done"}) + "\n")
    assert CliRunner().invoke(merge, [str(tmp_path)]).exit_code == 0
    assert f"{tmp_path}: no log of shard 2/4, 4/4; it had no scan, or was not run" in caplog.text
