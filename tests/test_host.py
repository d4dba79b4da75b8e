"""What a container may use, from the files that the kernel shows it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from app import host
from app.cli import main
from app.engines import torch_engine
from app.host import allowed_cpus, allowed_memory
from tests.conftest import ROOT


def cgroup(folder: pathlib.Path, **files: str) -> pathlib.Path:
    """A folder like /sys/fs/cgroup; __ in a name stands for a dot, ___ for a slash."""
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content + "\n")
    return folder


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu__max": "200000 100000"}, 2),
        ({"cpu__max": "150000 100000"}, 2),  # a second thread helps
        ({"cpu__max": "10000 100000"}, 1),
        ({"cpu__max": "max 100000"}, None),
        ({"cpu___cpu__cfs_quota_us": "400000", "cpu___cpu__cfs_period_us": "100000"}, 4),
        ({"cpu___cpu__cfs_quota_us": "-1", "cpu___cpu__cfs_period_us": "100000"}, None),
        ({}, None),
        ({"cpu__max": "garbage"}, None),
    ],
)
def test_cpus(tmp_path: pathlib.Path, files: dict[str, str], cpus: int | None) -> None:
    assert allowed_cpus(cgroup(tmp_path, **files)) == cpus


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory__max": "1000", "memory__current": "300"}, 700),
        ({"memory__max": "1000", "memory__current": "1001"}, 0),
        ({"memory__max": "max", "memory__current": "300"}, None),
        ({"memory___memory__limit_in_bytes": "1000", "memory___memory__usage_in_bytes": "1"}, 999),
        ({}, None),
    ],
)
def test_memory(tmp_path: pathlib.Path, files: dict[str, str], left: int | None) -> None:
    assert allowed_memory(cgroup(tmp_path, **files)) == left


@pytest.mark.parametrize(
    ("own", "cpus", "left"),
    [
        ("0::/job_7/step_0/task_0", 3, 600),  # the step has none of its own; the job's limit is less than the node's
        ("0::/job_7", 3, 600),
        ("0::/elsewhere", 8, 9000),  # a container sees its own part of the tree alone
        ("0::/../../job_7", 8, 9000),
        ("0::/", 8, 9000),
        ("nonsense", 8, 9000),
    ],
)
def test_limits_above_this_process_count(tmp_path: pathlib.Path, own: str, cpus: int, left: int) -> None:
    """SLURM and systemd limit a job, and processes lie folders below it."""
    tree, listing = tmp_path / "cgroup", tmp_path / "own"
    (tree / "job_7" / "step_0" / "task_0").mkdir(parents=True)
    cgroup(tree, cpu__max="800000 100000", memory__max="10000", memory__current="1000")
    cgroup(tree / "job_7", cpu__max="300000 100000", memory__max="1000", memory__current="400")
    cgroup(tree / "job_7" / "step_0", cpu__max="max 100000", memory__max="max", memory__current="400")
    listing.write_text(f"{own}\n")
    assert allowed_cpus(tree, listing) == cpus
    assert allowed_memory(tree, listing) == left


def test_version_1_names_its_controllers(tmp_path: pathlib.Path) -> None:
    tree, listing = tmp_path / "cgroup", tmp_path / "own"
    (tree / "memory" / "slurm" / "job_7").mkdir(parents=True)
    cgroup(tree / "memory" / "slurm" / "job_7", memory__limit_in_bytes="1000", memory__usage_in_bytes="1")
    listing.write_text("5:cpuset:/other\n4:freezer,memory:/slurm/job_7\n0::/\n")
    assert allowed_memory(tree, listing) == 999


@pytest.mark.parametrize(
    ("affinity", "quota", "variable", "threads"),
    [
        (8, None, None, 8),
        (8, 3, None, 3),
        (2, 3, None, 2),
        (8, None, "4", 4),
        (8, None, "16", 8),
        (8, None, "4,2", 4),
        (8, None, "", 8),
        (8, None, "many", 8),
        (8, None, "0", 8),
        (8, 2, "1", 1),
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: int | None, variable: str | None, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(affinity)))
    monkeypatch.setattr(host, "allowed_cpus", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert host.thread_count() == threads


def test_a_run_takes_no_more_threads_and_memory_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        for allowed, expected in ((threads, threads), (threads + 5, threads), (1, 1)):
            monkeypatch.setattr(torch_engine, "thread_count", lambda allowed=allowed: allowed)
            torch_engine.limit_threads()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(host, "allowed_memory", lambda: 12345)
    assert torch_engine.free_memory(torch.device("cpu")) == 12345
    monkeypatch.setattr(host, "allowed_memory", lambda: None)
    assert torch_engine.free_memory(torch.device("cpu")) > 12345


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "status").write_text("Name:\tpython\nVmHWM:\n")  # gVisor's lacks the number
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "proc" / "meminfo")
    return tmp_path / "proc"


def test_a_figure_that_cannot_be_had_is_null(
    no_proc: pathlib.Path, phantom_path: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    assert host.peak_rss_mib() is None
    assert host.seconds_since_process_start() is None
    assert host.available_memory() > 0
    arguments = [str(phantom_path), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    record = json.loads((tmp_path / "out" / "run_log.jsonl").read_text())
    assert record["host_peak_rss_mib"] is None
    assert record["seconds"]["start_up"] is None
    assert record["status"] == "done"


def test_processes_end_with_the_one_that_started_them() -> None:
    """However it ends: one that is killed cannot tell them."""
    code = "import os; from app.host import process_pool; p = process_pool(1); print(p.submit(os.getpid).result()); "
    command = [sys.executable, "-c", code + "os.kill(os.getpid(), 9)"]
    killed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    process = pathlib.Path("/proc", killed.stdout.decode().strip())
    assert process.name.isdecimal()
    end = time.monotonic() + 20
    while process.exists() and "Z" not in (process / "stat").read_text().split()[2]:
        assert time.monotonic() < end, "it waits for more work"
        time.sleep(0.02)
