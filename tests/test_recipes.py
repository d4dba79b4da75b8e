"""The recipes for clusters, run as far as this machine can: docs/CLUSTER.md."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from app.run_log import read_records
from phantom import write_phantom
from tests.conftest import ROOT

RECIPES = ROOT / "cluster" / "recipes"


@pytest.fixture
def scans(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three small scans and a damaged one."""
    for i in range(3):
        write_phantom(tmp_path / "in" / f"p{i}_0000.nii.gz", None, (40, 40, 6), (6.0, 7.0, 40.0), seed=i)
    (tmp_path / "in" / "bad_0000.nii.gz").write_bytes(b"no scan")
    return tmp_path / "in"


@pytest.fixture
def program(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> pathlib.Path:
    """The program with the tiny model, as one word."""
    path = tmp_path / "program"
    words = shlex.join([sys.executable, "-m", "app"])
    path.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(ROOT))}\n"
        f'if [ "$1" = merge-logs ]; then exec {words} "$@"; fi\n'
        f'exec {words} "$@" --weights {shlex.quote(str(tiny_weights))} --device cpu\n'
    )
    path.chmod(0o755)
    return path


def outcome(output: pathlib.Path) -> dict[str, str]:
    return {record["case"]: record["status"] for record in read_records(output)}


ALL = {"bad": "failed", "p0": "done", "p1": "done", "p2": "done"}


def test_slurm_tasks_do_their_shards_and_end_well(
    scans: pathlib.Path, program: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The script as a task runs it; a scan that fails is no reason to queue the task again."""
    task = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "3"}
    for i in "123":
        environment = os.environ | task | {"SLURM_ARRAY_TASK_ID": i, "PROGRAM": str(program)}
        command = ["sh", str(RECIPES / "slurm.sbatch"), str(scans), str(tmp_path / "out")]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert outcome(tmp_path / "out") == ALL
    assert len(list((tmp_path / "out").glob("run_log-*-of-0003.jsonl"))) >= 2
    wrong = subprocess.run(
        ["sh", RECIPES / "slurm.sbatch", tmp_path / "nowhere", tmp_path / "out"],
        env=os.environ | {"PROGRAM": str(program)},
        capture_output=True,
        check=False,
    )
    assert wrong.returncode == 1


def test_the_kubernetes_job_is_valid_and_its_pods_know_their_number(
    scans: pathlib.Path, program: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = yaml.safe_load((RECIPES / "kubernetes.yaml").read_text())
    kubernetes_validate.validate(job, "1.30", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "JOB_COMPLETIONS": str(job["spec"]["completions"])
    }
    line = container["command"][2].replace(
        "sh predict.sh /data/inputs /data/outputs", f"{program} {scans} {tmp_path / 'out'}"
    )
    wrong = subprocess.run(["sh", "-c", line.replace(str(scans), "/nowhere")], capture_output=True, check=False)
    assert wrong.returncode == 2
    for i in range(8):
        environment = os.environ | {"JOB_COMPLETIONS": "8", "JOB_COMPLETION_INDEX": str(i)}
        subprocess.run(["sh", "-c", line], env=environment, check=True, capture_output=True)
    assert outcome(tmp_path / "out") == ALL


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="no snakemake")
def test_snakemake_runs_shards_and_merges_their_logs(
    scans: pathlib.Path, program: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    settings = [f"input={scans}", f"output={tmp_path / 'out'}", "shards=2", f"program={program}"]
    command = ["snakemake", "-s", str(RECIPES / "Snakefile"), "--cores", "2", "--config", *settings]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert outcome(tmp_path / "out") == ALL
    assert len((tmp_path / "out" / "run_log.jsonl").read_text().splitlines()) == 4


@pytest.mark.skipif(shutil.which("parallel") is None, reason="no GNU parallel")
def test_the_line_for_gnu_parallel(scans: pathlib.Path, program: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = (ROOT / "docs" / "CLUSTER.md").read_text()
    (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith("seq 4 | parallel"))
    line = line.replace("hrnet-ocr-abdomen INPUT OUTPUT", f"{program} {scans} {tmp_path / 'out'}")
    environment = os.environ | {"PARALLEL_HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # the number of shards in which a scan failed
    assert outcome(tmp_path / "out") == ALL
