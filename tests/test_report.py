"""The report as a picture and a page, and the efficiency measurement with real processes."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import cv2
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from app.organs import ORGANS
from evaluation import efficiency
from evaluation.__main__ import main
from evaluation.accuracy import CaseScores
from evaluation.efficiency import EfficiencyError, Samples, measure, row_2021, row_2023
from evaluation.metrics import PROTOCOLS, Score
from evaluation.report import page
from phantom import write_phantom
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The report on three phantoms whose predictions are their references, moved by 0, 1 and 2 voxels."""
    folder = tmp_path_factory.mktemp("report")
    for shift in range(3):
        name = f"case{shift}"
        image, label = folder / "images" / f"{name}_0000.nii.gz", folder / "labels" / f"{name}.nii.gz"
        write_phantom(image, label, shape=(96, 80, 24), spacing_mm=(4.0, 4.0, 11.0), axes="RSA", seed=shift)
        reference = nib.load(label)
        moved = np.roll(np.asarray(reference.dataobj), shift, axis=0)
        (folder / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(moved, reference.affine), folder / "masks" / f"{name}.nii.gz")
    out = folder / "out"
    arguments = [str(folder / "masks"), str(folder / "labels"), "--out", str(out), "--images", str(folder / "images")]
    result = CliRunner().invoke(main, ["accuracy", *arguments])
    assert result.exit_code == 0, result.output
    return out


def test_the_report_holds_tables_and_figures(report: pathlib.Path) -> None:
    files = {path.name for path in report.iterdir()}
    assert files == {"scores.csv", "summary.csv", "table.md", "report.html", "scores.png", "volumes.png", "cases.png"}
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # self-contained
    assert '<meta name="viewport"' in page
    dice = [float(row[1]) for row in list(csv.reader((report / "scores.csv").read_text().splitlines()))[1:]]
    assert dice[0] == 1.0 > dice[1] > dice[2]


def test_a_name_is_text_in_the_page_whatever_it_holds() -> None:
    path, nothing = pathlib.Path("a"), dict.fromkeys(ORGANS, 0.0)
    case = CaseScores('<b>&"x', path, None, dict.fromkeys(ORGANS, Score(0.5, 0.25)), nothing, nothing)
    html = page("<script>", [case], PROTOCOLS["flare22"], {"<i>": b"png"})
    assert "&lt;b&gt;&amp;&#34;x (no prediction)" in html
    assert "<td>50.0</td><td>25.0</td>" in html
    assert "liver 5 mm, kidneys 3 mm, spleen 3 mm, pancreas 5 mm" in " ".join(html.split())
    assert not re.search("<(b|script|i)>", html)


@pytest.mark.parametrize("damage", ["no channel in the names", "one scan is missing", "damaged", "another grid"])
def test_scores_are_written_whatever_the_scans_for_pictures_are(
    report: pathlib.Path, tmp_path: pathlib.Path, damage: str
) -> None:
    images, options = tmp_path / "images", []
    shutil.copytree(report.parent / "images", images)
    scan = images / "case1_0000.nii.gz"
    if damage == "no channel in the names":
        for path in images.iterdir():
            path.rename(path.with_name(path.name.replace("_0000", "")))
    elif damage == "one scan is missing":
        scan.unlink()
    elif damage == "damaged":
        scan.write_bytes(scan.read_bytes()[:2000])
    else:
        write_phantom(scan, None, shape=(96, 80, 20), spacing_mm=(4.0, 4.0, 11.0))
    options = ["--out", str(tmp_path / "out"), "--images", str(images)]
    arguments = [str(report.parent / "masks"), str(report.parent / "labels"), *options]
    result = CliRunner().invoke(main, ["accuracy", *arguments])
    assert result.exit_code == 0, result.output
    assert ("warning: " in result.output) == (damage != "no channel in the names")
    assert (tmp_path / "out" / "cases.png").exists() == (damage not in ("damaged", "another grid"))
    assert (tmp_path / "out" / "report.html").exists()


def test_the_page_in_a_real_browser_of_a_phones_width(report: pathlib.Path, tmp_path: pathlib.Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    shot = tmp_path / "page.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--window-size=500,2200"]
    command += ["--enable-logging=stderr", f"--screenshot={shot}", (report / "report.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    picture = cv2.imread(str(shot))
    assert picture is not None
    assert picture.shape[1] == 500
    assert picture[:, -3:].min() > 240  # nothing runs off the right edge
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # the figures are there


def test_columns_of_both_years() -> None:
    samples = Samples([300] * 97 + [900] * 2 + [1000], [(60.0, 10.0, 30.0), (0.0, 0.0, 100.0)], [2000.0, 3000.0], 10.04)
    row = {"name": "a", "time": 10.04, "gpu_memory": 300, "time_multiply_memory": 3190.0}
    assert row_2021("a", samples) == row
    assert list(row_2023("a", samples).values()) == ["a.nii.gz", 10.04, 1000, 3190, 70.0, 7.0, 3000.0, 500]


def test_sampling_covers_the_run_and_a_machine_without_gpu_gives_null() -> None:
    def sleep() -> None:
        subprocess.run(["sleep", "0.55"], check=True)

    samples = measure(sleep, None)
    assert 0.55 <= samples.time < 2
    assert 3 <= len(samples.RAM_list) == len(samples.cpu_list) <= 6
    assert row_2021("a", samples)["gpu_memory"] is None
    assert row_2023("a", samples)["MaxGPU_Mem"] is None


def test_a_fresh_process_for_every_case(
    tmp_path: pathlib.Path, phantom_path: pathlib.Path, tiny_weights: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for name in ("a", "b"):
        shutil.copy(phantom_path, inputs / f"{name}_0000.nii.gz")
    plain = efficiency.command
    tiny = ["--weights", str(tiny_weights), "--device", "cpu"]
    monkeypatch.setattr(efficiency, "command", lambda *arguments: [*plain(*arguments), *tiny])
    monkeypatch.setitem(os.environ, "PYTHON", sys.executable)
    result = CliRunner().invoke(main, ["efficiency", str(inputs), str(outputs)])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((outputs / "efficiency_2021.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert (outputs / "a.nii.gz").exists()
    assert (outputs / "b.nii.gz").exists()
    assert len((outputs / "run_log.jsonl").read_text().splitlines()) == 2
    assert float(rows[0]["time"]) == pytest.approx(json.loads((outputs / "a.json").read_text())["time"], abs=1e-3)


def test_the_organisers_command_and_a_failing_one(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = efficiency.command(pathlib.Path("/i"), pathlib.Path("/o"), "team", 1)
    assert " ".join(words[1:]) == (
        "container run --gpus=device=1 --name team --rm -v /i/:/workspace/inputs/ -v /o/:/workspace/outputs/ "
        "team:latest /bin/bash -c sh predict.sh"
    )
    monkeypatch.setitem(os.environ, "DOCKER", "false")
    (tmp_path / "x_0000.nii.gz").write_bytes(b"")
    with pytest.raises(EfficiencyError, match=r"x_0000\.nii\.gz: exit 1"):
        efficiency.run_case(tmp_path / "x_0000.nii.gz", tmp_path / "out", "team", 0)
    with pytest.raises(EfficiencyError, match=r"no \.nii\.gz files"):
        efficiency.measure_folder(ROOT / "app", tmp_path, None, 0)


def test_a_scan_that_fails_does_not_lose_what_was_measured_of_the_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / f"{name}_0000.nii.gz").touch()

    def run_case(scan: pathlib.Path, *_: object) -> Samples:
        if scan.name.startswith("b"):
            raise EfficiencyError("b: exit 1: no such image")
        return Samples()

    monkeypatch.setattr(efficiency, "run_case", run_case)
    with pytest.raises(EfficiencyError, match=r"^b: exit 1: no such image$"):
        efficiency.measure_folder(tmp_path, tmp_path / "out", None, 0)
    rows = list(csv.DictReader((tmp_path / "out" / "efficiency_2023.csv").read_text().splitlines()))
    assert [row["Name"] for row in rows] == ["a.nii.gz", "c.nii.gz"]


def test_a_command_that_cannot_be_run_says_what_it_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x_0000.nii.gz").touch()
    docker = tmp_path / "docker"
    monkeypatch.setitem(os.environ, "DOCKER", str(docker))
    with pytest.raises(EfficiencyError, match=r"docker: cannot be run \(No such file.*; install it, or set DOCKER"):
        efficiency.run_case(tmp_path / "x_0000.nii.gz", tmp_path, "team", 0)
    docker.write_text("#!/bin/sh\necho 'no such image' >&2\necho 'See --help.' >&2\nexit 125\n")
    docker.chmod(0o755)
    with pytest.raises(EfficiencyError, match=r"x_0000\.nii\.gz: exit 125: no such image; See --help\.$"):
        efficiency.run_case(tmp_path / "x_0000.nii.gz", tmp_path, "team", 0)
