"""A run over a Ray cluster of a head and two nodes, while nodes and processes die."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from app.cases import Case, check_output, find_cases
from app.errors import InputError
from app.options import ModelChoice
from app.run_log import CaseRecord, append
from app.whole_file import whole_file
from phantom import write_phantom
from phantom.dicom import write_series
from tests.conftest import ROOT

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 (only where Ray is installed)

from cluster.driver import Driver  # noqa: E402
from cluster.workers import Needs, Segmenting  # noqa: E402

GIB = 1 << 30
GOOD = 28


class Deadly(Segmenting):
    """Segments, but one case kills its process, and one raises."""

    def do(self, loaded: Any, case: Case) -> CaseRecord:  # noqa: ANN401
        if case.name == "killer":
            os.kill(os.getpid(), signal.SIGKILL)
        if case.name == "raiser":
            raise RuntimeError("out of cheese")
        return super().do(loaded, case)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """30 small scans; two of them are trouble."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(5):
        write_phantom(folder / f"p{i:02d}_0000.nii.gz", None, (44, 44, 8), (6.0, 6.0, 30.0), seed=i)
    for i in range(5, GOOD):
        os.link(folder / f"p{i % 5:02d}_0000.nii.gz", folder / f"p{i:02d}_0000.nii.gz")
    for name in ("killer", "raiser"):
        os.link(folder / "p00_0000.nii.gz", folder / f"{name}_0000.nii.gz")
    return folder


@pytest.fixture(scope="module")
def plain(scans: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, tiny_weights: pathlib.Path) -> pathlib.Path:
    """The masks of a run without a cluster."""
    output = tmp_path_factory.mktemp("plain")
    command = [sys.executable, "-m", "app", str(scans), str(output), "--weights", str(tiny_weights), "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return output


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that does no work, and two nodes with a processor each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
    for _ in range(2):
        made.add_node(num_cpus=1, memory=2 * GIB, object_store_memory=80 << 20)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def test_masks_survive_nodes_and_processes_that_die(
    cluster: Cluster, scans: pathlib.Path, plain: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    records: list[CaseRecord] = []

    def on_record(record: CaseRecord) -> None:
        records.append(record)
        append(tmp_path, record)

    choice = ModelChoice(None, tiny_weights, "auto", "cpu", None, no_postprocess=False)
    driver = Driver(Deadly(choice), Needs(cpus=1, memory_mib=1000), 2, on_record)

    def trouble() -> None:
        wait_until(lambda: len(records) >= 4)
        workers = [process for process in busy_workers() if process != os.getpid()]
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: len(records) >= 12)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    check_output(tmp_path)
    thread = threading.Thread(target=trouble, daemon=True)
    thread.start()
    driver.run(find_cases(scans, tmp_path))
    thread.join(60)
    assert not thread.is_alive()
    failed = {record.case: record.error for record in records if record.status == "failed"}
    assert set(failed) == {"killer", "raiser"}
    assert "the process ended during this case" in str(failed["killer"])
    assert "3 times" in str(failed["killer"])
    assert "RuntimeError" in str(failed["raiser"])
    assert "out of cheese" in str(failed["raiser"])
    names = [json.loads(line)["case"] for line in (tmp_path / "run_log.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names)) == GOOD + 2
    for i in range(GOOD):
        mask = f"p{i:02d}.nii.gz"
        assert (tmp_path / mask).read_bytes() == (plain / mask).read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.failed.json")) == ["killer.failed.json", "raiser.failed.json"]
    assert not (tmp_path / "killer.nii.gz").exists()


class Lingering:
    """One case waits until the other has begun on its own node; that one never ends on the first node it meets."""

    def __init__(self, begun: pathlib.Path) -> None:
        self.begun = begun

    def load(self) -> None:
        return None

    def do(self, loaded: None, case: Case) -> CaseRecord:
        if case.name == "p01" and not self.begun.exists():
            with whole_file(self.begun) as stream:
                stream.write(ray.get_runtime_context().get_node_id().encode())
            time.sleep(600)
        while not self.begun.exists():
            time.sleep(0.05)
        return CaseRecord(case.name, "done")


def test_a_lost_node_s_case_goes_to_a_worker_that_had_run_out_of_work(
    cluster: Cluster, scans: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The only room left is that worker's: a new one could never start."""
    records: list[CaseRecord] = []
    driver = Driver(Lingering(tmp_path / "begun"), Needs(cpus=1, memory_mib=100), 2, records.append)
    cases = [case for case in find_cases(scans, tmp_path) if case.name in ("p00", "p01")]
    run = threading.Thread(target=driver.run, args=(cases,), daemon=True)
    run.start()
    wait_until(lambda: [record.case for record in records] == ["p00"])
    (lost,) = (node for node in cluster.worker_nodes if node.node_id == (tmp_path / "begun").read_text())
    cluster.remove_node(lost, allow_graceful=False)
    run.join(120)
    assert [(record.case, record.status) for record in records] == [("p00", "done"), ("p01", "done")]
    assert driver.lost == {"p01": 1}


def test_a_driver_without_room_says_what_it_waits_for(
    cluster: Cluster,
    scans: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cluster.driver.PROGRESS_SECONDS", 0.5)
    records: list[CaseRecord] = []
    (tmp_path / "begun").touch()
    driver = Driver(Lingering(tmp_path / "begun"), Needs(cpus=3, memory_mib=100), 1, records.append)
    case = next(iter(find_cases(scans, tmp_path)))
    run = threading.Thread(target=driver.run, args=([case],), daemon=True)
    run.start()
    wait_until(lambda: "no worker is running: waiting for a node with room for 3 CPU, 100 MiB" in caplog.text)
    cluster.add_node(num_cpus=3, memory=GIB, object_store_memory=80 << 20)
    run.join(120)
    assert [record.status for record in records] == ["done"]


def wait_until(happened: Callable[[], bool]) -> None:
    for _ in range(2400):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("two minutes have passed")


def busy_workers() -> list[int]:
    """The processes of Ray that run a `Worker`."""
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if status.read_bytes().startswith(b"ray::Worker"):
                found.append(int(status.parent.name))
        except OSError:
            continue
    return found


def test_the_command_line(
    scans: pathlib.Path, plain: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    """On this machine alone, then once more over what is there."""
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{scans / name}_0000.nii.gz\n" for name in ("p00", "p01", "p02")))
    (tmp_path / "bad_0000.nii.gz").write_bytes(b"no scan")
    few.write_text(few.read_text() + f"{tmp_path / 'bad_0000.nii.gz'}\n")
    command = [sys.executable, "-m", "cluster", *map(str, (tmp_path / "out", "--list", few, "--weights", tiny_weights))]
    command += ["--device", "cpu", "--workers", "2", "--memory-per-worker", "800", "--skip-existing"]
    for _ in range(2):
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert shown.returncode == 1, shown.stderr
        assert "Traceback" not in shown.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "run_log.jsonl").read_text().splitlines()]
    assert sorted(record["status"] for record in records) == ["done"] * 3 + ["failed"] + ["skipped"] * 4
    for name in ("p00", "p01", "p02"):
        assert (tmp_path / "out" / f"{name}.nii.gz").read_bytes() == (plain / f"{name}.nii.gz").read_bytes()


def on_cluster(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_a_folder_without_ct_is_the_same_usage_error_as_in_a_plain_run(tmp_path: pathlib.Path) -> None:
    flat = np.zeros((8, 8, 2), np.int16)
    write_series(tmp_path / "in", flat, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    shown = on_cluster(tmp_path / "in", tmp_path / "out")
    plain = subprocess.run(
        [sys.executable, "-m", "app", tmp_path / "in", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == plain.returncode == 2
    assert "no CT to segment" in shown.stderr
    assert shown.stderr == plain.stderr


def test_a_log_that_cannot_be_written_is_a_warning_here_too(scans: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Nothing is left to do, so that no cluster is started."""
    (tmp_path / "run_log.jsonl").mkdir()
    write_phantom(tmp_path / "p00.nii.gz", None, (8, 8, 2))
    shown = on_cluster(scans / "p00_0000.nii.gz", tmp_path, "--skip-existing")
    assert shown.returncode == 0, shown.stderr
    assert f"WARNING: {tmp_path / 'run_log.jsonl'}: not written (Is a directory)" in shown.stderr
    assert "p00: skipped, its mask exists" in shown.stderr


def test_without_ray_one_line_says_what_to_install(scans: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n")
    shown = on_cluster(scans / "p00_0000.nii.gz", tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert shown.returncode == 2
    assert shown.stderr.splitlines()[-1] == "ERROR: a run on a cluster needs ray; pip install '.[cluster]'"
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("address", "line"),
    [("auto", "auto: no Ray cluster that can be used ("), (None, "Ray cannot")],
)
def test_a_cluster_that_cannot_be_used_is_one_line(
    scans: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, address: str | None, line: str
) -> None:
    """Ray's own errors are of many classes; the address may be wrong, or the machine too busy."""
    from cluster import __main__ as front

    for error in (
        ConnectionError("no"),
        ValueError("no"),
        RuntimeError("other version"),
        ray.exceptions.RpcError("late"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(ray, "init", fail)
        with pytest.raises(InputError, match=re.escape(line)):
            front._start_ray(address, False, 1, 0, 100)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://localhost:{}", "[::1]:{}", "127.0.0.1:99999"])
@pytest.mark.parametrize("given", ["option", "variable"])
def test_an_address_where_nobody_answers_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, given: str
) -> None:
    """Ray tries for minutes."""
    from cluster import __main__ as front

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was asked"))
    with socket.socket() as taken:  # but not listening
        taken.bind(("127.0.0.1", 0))
        address = address.format(taken.getsockname()[1])
        if given == "variable":
            monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match=re.escape(f"{address}: no Ray cluster answers there (")):
            front._start_ray(address if given == "option" else None, False, 1, 0, 100)


def test_a_worker_measures_what_a_plain_run_measures(
    scans: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPU memory, and in the first record the time until the model was ready."""
    monkeypatch.setattr("app.run.nvml_reader", lambda card: contextlib.nullcontext(lambda: 1234))
    work = Segmenting(ModelChoice(None, tiny_weights, "auto", "cpu", None, no_postprocess=False))
    loaded = work.load()
    first, second = (work.do(loaded, case) for case in find_cases(scans, tmp_path)[:2])
    assert first.status == second.status == "done"
    assert first.gpu_peak_mib is not None
    assert first.gpu_peak_mib["flare2021"] == first.gpu_peak_mib["maximum"] == 1234
    assert first.seconds["start_up"] is not None
    assert first.seconds["start_up"] > 0
    assert second.seconds["start_up"] == 0


def test_a_model_that_no_worker_can_load_is_one_line(scans: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folders = [str(scans), str(tmp_path / "out")]
    command = [sys.executable, "-m", "cluster", *folders, "--model", "missing", "--workers", "1"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 2, shown.stderr
    lines = [line for line in shown.stderr.splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1
    assert "missing" in lines[0]
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("wish", [("cpus", "0"), ("cpus", "-1"), ("gpus", "-1"), ("gpus", "1.5"), ("memory", "0")])
def test_what_no_worker_can_have_is_a_usage_error(tmp_path: pathlib.Path, wish: tuple[str, str]) -> None:
    arguments = [str(tmp_path), str(tmp_path / "out"), f"--{wish[0]}-per-worker", wish[1]]
    result = CliRunner().invoke(importlib.import_module("cluster.__main__").main, arguments)
    assert result.exit_code == 2
    assert f"--{wish[0]}-per-worker" in result.output
