"""The command line by its exit code, its lines, and the files it leaves."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import click
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from app import Segmenter, __version__
from app.case_queue import CaseQueue
from app.cases import find_cases
from app.cli import main
from app.errors import VolumeError
from app.run import CaseRunner
from app.run import Run as RunOverCases
from app.volumes import open_volume
from app.work import RunLog
from phantom import write_phantom
from tests.conftest import ROOT
from tests.nifti_files import damaged

BAD_KINDS = [
    *("truncated gz", "empty", "text", "2-D", "4-D with 3 volumes", "RGB", "zero spacing", "NaN spacing"),
    *("singular affine", "huge header"),
]


Folders = tuple[pathlib.Path, pathlib.Path]


@pytest.fixture
def folders(tmp_path: pathlib.Path, phantom_path: pathlib.Path) -> Folders:
    """An input folder with one good scan, and an output folder that is not there yet."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(phantom_path, inputs / "good_0000.nii.gz")
    return inputs, tmp_path / "outputs"


class Outcome:
    """Exit code, logged lines and run log of one run."""

    def __init__(self, code: int, lines: list[str], output: pathlib.Path) -> None:
        self.code, self.lines = code, lines
        log = output / "run_log.jsonl"
        self.records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        self.files = sorted(path.name for path in output.iterdir()) if output.is_dir() else []

    def record(self, case: str) -> dict[str, Any]:
        one: dict[str, Any]
        (one,) = (record for record in self.records if record["case"] == case)
        return one


Run = Callable[..., Outcome]


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture, tiny_weights: pathlib.Path) -> Iterator[Run]:
    """Call the command line in this process, with the tiny model and on the CPU."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    caplog.set_level(logging.INFO, logger="app")

    def call(source: object, output: pathlib.Path, *options: str, weights: bool = True) -> Outcome:
        caplog.clear()
        arguments = [str(source), str(output), "--device", "cpu", *options]
        result = CliRunner().invoke(main, [*arguments, "--weights", str(tiny_weights)] if weights else arguments)
        lines = [record.getMessage() for record in caplog.records] + result.output.splitlines()
        return Outcome(result.exit_code, lines, output)

    yield call
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_a_folder_gives_masks_and_a_run_log(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    shutil.copy(inputs / "good_0000.nii.gz", inputs / "second.nii.gz")
    (inputs / "notes.txt").write_text("not a scan")
    (inputs / "._good_0000.nii.gz").write_text("what macOS leaves")
    outcome = run(inputs, outputs)
    assert outcome.code == 0
    assert outcome.files == ["good.nii.gz", "run_log.jsonl", "second.nii.gz"]
    scan, mask = nib.load(inputs / "good_0000.nii.gz"), nib.load(outputs / "good.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3, 4}
    record = outcome.record("good")
    assert record["status"] == "done"
    assert record["error"] is None
    assert record["shape"] == [128, 128, 20]
    assert record["spacing_zyx_mm"] == [13.0, 3.0, 3.0]
    assert set(record["seconds"]) == {"start_up", "read", "network", "postprocess", "write", "total"}
    assert record["gpu_peak_mib"] == {"flare2021": None, "maximum": None, "torch": None}
    assert record["host_peak_rss_mib"] > 50
    assert record["versions"]["app"] == __version__
    assert len(record["weights_sha256"]["tiny.safetensors"]) == 64
    voxels = np.bincount(np.asarray(mask.dataobj).ravel(), minlength=5)[1:]
    assert list(record["volumes_ml"].values()) == pytest.approx(voxels * 13 * 3 * 3 / 1000, abs=0.006)
    assert sum("GPU memory: not measured" in line for line in outcome.lines) == 1


def test_one_file_and_the_python_call_give_the_same(run: Run, folders: Folders, tiny_weights: pathlib.Path) -> None:
    inputs, outputs = folders
    assert run(inputs / "good_0000.nii.gz", outputs).code == 0
    mask = Segmenter.load(tiny_weights, device="cpu").segment(inputs / "good_0000.nii.gz")
    np.testing.assert_array_equal(mask, np.asarray(nib.load(outputs / "good.nii.gz").dataobj))


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_a_bad_case_is_one_line_and_the_others_go_on(run: Run, folders: Folders, kind: str) -> None:
    inputs, outputs = folders
    bad = inputs / "bad_0000.nii.gz"
    line = f"{bad}: {damaged(kind, bad)}"
    outcome = run(inputs, outputs)
    assert outcome.code == 1
    assert outcome.files == ["bad.failed.json", "good.nii.gz", "run_log.jsonl"]
    about = [text for text in outcome.lines if str(bad) in text]
    assert len(about) == 1
    assert about[0].startswith(line)
    assert outcome.record("bad")["status"] == "failed"
    assert outcome.record("bad")["error"] == about[0]
    assert outcome.record("good")["status"] == "done"


def test_an_unreadable_file_is_one_line(run: Run, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = folders
    (inputs / "bad_0000.nii.gz").symlink_to(inputs / "nowhere")
    outcome = run(inputs, outputs)
    assert outcome.code == 1
    line = f"{inputs}/bad_0000.nii.gz: cannot be opened (No such file or directory); check that it exists"
    assert sum(text.startswith(line) for text in outcome.lines) == 1
    assert outcome.record("good")["status"] == "done"


def test_an_unexpected_error_is_one_line_too(run: Run, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = folders

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("app.segmenter.keep_largest", broken)
    outcome = run(inputs, outputs)
    assert outcome.code == 1
    assert outcome.record("good")["error"] == f"{inputs}/good_0000.nii.gz: unexpected ZeroDivisionError: a bug"


def test_two_inputs_of_one_mask_name(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    for name in ("twice.nii.gz", "twice_0000.nii.gz"):
        shutil.copy(inputs / "good_0000.nii.gz", inputs / name)
    outcome = run(inputs, outputs)
    assert outcome.code == 1
    assert outcome.files == ["good.nii.gz", "run_log.jsonl", "twice.failed.json"]
    for name in ("twice.nii.gz", "twice_0000.nii.gz"):
        line = f"{inputs}/{name}: another scan would get the same mask name twice.nii.gz; rename one"
        assert outcome.lines.count(line) == 1


@pytest.mark.parametrize(
    ("source", "output", "line"),
    [
        ("nowhere", "out", "{}/nowhere: no such file or folder; give a scan or a folder of scans"),
        ("empty", "out", "{}/empty: no .nii.gz or .nii file and no DICOM; check the path, or give a scan or a folder"),
        ("inputs", "x.nii.gz", "{}/x.nii.gz: OUTPUT must be a folder, not a file; masks in it are named"),
        (
            "inputs",
            "inputs",
            "{}/inputs: OUTPUT is the input folder; choose another, or masks would be taken for scans",
        ),
        ("inputs", "inputs/good_0000.nii.gz/x", "{}/inputs/good_0000.nii.gz/x: a file or a dead link is in its way; "),
    ],
)
def test_what_cannot_start_is_a_usage_error(run: Run, folders: Folders, source: str, output: str, line: str) -> None:
    parent = folders[0].parent
    (parent / "empty").mkdir()
    outcome = run(parent / source, parent / output)
    assert outcome.code == 2
    assert sum(text.startswith(line.format(parent)) for text in outcome.lines) == 1


def test_what_a_shell_makes_of_a_pattern_is_not_listed(run: Run, folders: Folders) -> None:
    outcome = run("0.nii.gz", folders[1], *(f"{i}.nii.gz" for i in range(2000)))
    assert outcome.code == 2
    assert outcome.lines[-1].endswith("1.nii.gz ...; for several scans give their folder, or --list FILE")


def test_an_output_folder_that_is_not_writable(run: Run, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = folders
    outputs.mkdir()
    if os.geteuid() == 0:  # root may write everywhere: the kernel's answer is played

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("app.cases.tempfile.TemporaryFile", refuse)
    else:
        outputs.chmod(0o555)
    outcome = run(inputs, outputs)
    assert outcome.code == 2
    line = f"{outputs}: not writable (Permission denied); check its owner, or docker run --user"
    assert line in outcome.lines


def test_a_mask_never_overwrites_its_scan(run: Run, folders: Folders) -> None:
    inputs, _ = folders
    scan = (inputs / "good_0000.nii.gz").rename(inputs / "scan.nii.gz")
    before = scan.read_bytes()
    outcome = run(scan, inputs)
    assert outcome.code == 1
    assert f"{scan}: its mask would overwrite the scan {scan}; choose another OUTPUT folder" in outcome.lines
    assert scan.read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_nothing_partial(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    outputs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(outputs)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        (outputs / "earlier.nii.gz").write_bytes(b"kept")
        (outputs / "filler").write_bytes(bytes(3000))
        outcome = run(inputs, outputs)
        assert outcome.code == 1
        line = f"{outputs}/good.nii.gz: the mask cannot be written (No space left on device); check the folder"
        assert sum(text.startswith(line) for text in outcome.lines) == 1
        assert [name for name in outcome.files if name != "run_log.jsonl"] == ["earlier.nii.gz", "filler"]
    finally:
        subprocess.run(["umount", str(outputs)], check=True)


def test_skip_existing(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    outputs.mkdir()
    (outputs / "good.nii.gz").write_bytes(b"mine")
    outcome = run(inputs, outputs, "--skip-existing")
    assert outcome.code == 0
    assert (outputs / "good.nii.gz").read_bytes() == b"mine"
    assert outcome.record("good")["status"] == "skipped"
    refused = run(inputs, outputs)  # the program did not write that file
    assert refused.code == 1
    assert (outputs / "good.nii.gz").read_bytes() == b"mine"
    (outputs / "good.nii.gz").unlink()
    for _ in range(2):  # its own mask it may replace
        assert run(inputs, outputs).code == 0
        assert nib.load(outputs / "good.nii.gz").shape == (128, 128, 20)


def test_a_scan_that_is_not_in_hounsfield_units_is_warned_of(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    image = nib.load(inputs / "good_0000.nii.gz")
    shifted = nib.Nifti1Image((image.get_fdata() + 1024).astype(np.int16), image.affine)
    nib.save(shifted, inputs / "good_0000.nii.gz")
    outcome = run(inputs, outputs)
    assert outcome.code == 0
    assert any("do not look like Hounsfield units" in text for text in outcome.record("good")["warnings"])


def test_a_scan_of_air_has_no_organs_and_says_so(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    nib.save(nib.Nifti1Image(np.full((64, 64, 3), -1000, np.int16), np.eye(4)), inputs / "air.nii")
    outcome = run(inputs, outputs)
    record = outcome.record("air.nii")
    assert record["network_slices"] == 0
    assert any("no liver, no kidneys, no spleen, no pancreas found" in text for text in record["warnings"])
    assert not np.asarray(nib.load(outputs / "air.nii").dataobj).any()


def test_postprocessing_can_be_switched_off(run: Run, folders: Folders) -> None:
    inputs, outputs = folders
    run(inputs, outputs)
    cleaned = np.asarray(nib.load(outputs / "good.nii.gz").dataobj)
    run(inputs, outputs, "--no-postprocess")
    raw = np.asarray(nib.load(outputs / "good.nii.gz").dataobj)
    assert (raw != cleaned).any()
    np.testing.assert_array_equal(raw[cleaned > 0], cleaned[cleaned > 0])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model", "huge"], "no weights for model 'huge'"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: cannot be read (No such file or directory)"),
        (
            ["--weights", "fast"],
            "fast: cannot be read (No such file or directory); check the path, or type --model fast",
        ),
        (["--weights", "x/Paper.safetensors"], "check the path, or type --model paper for the bundled one"),
        (
            ["--model", "Paper"],
            "no weights for model 'Paper' (available: fast, paper); choose one of these, or --weights",
        ),
        (["--model", "x/mine.safetensors"], "x/mine.safetensors: cannot be read (No such file or directory)"),
        (["--save", "fast"], "Invalid value for '--save': 'fast' is not one of 'nifti',"),
        (["--device", "cuda:0"], "Invalid value for '--device': 'cuda:0' is not one of 'auto', 'cuda', 'cpu'"),
        (["--weights", "nowhere.bin"], "nowhere.bin: cannot be read (No such file or directory)"),
        (["--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["--model", "fast", "--weights", "x.safetensors"], "got both --model and --weights; give one of them"),
        (["--device", "cuda"], "device cuda: no usable NVIDIA GPU"),
    ],
)
def test_bad_options(
    run: Run, folders: Folders, options: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    inputs, outputs = folders
    outcome = run(inputs, outputs, *options, weights="--device" in options)
    assert outcome.code == 2
    assert any(line in text for text in outcome.lines)


def test_auto_without_a_gpu_says_so_and_runs(run: Run, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    inputs, outputs = folders
    outcome = run(inputs, outputs, "--device", "auto")
    assert outcome.code == 0
    assert sum("no usable NVIDIA GPU" in text and "running on the CPU" in text for text in outcome.lines) == 1


def test_the_model_is_loaded_once_for_a_folder(
    folders: Folders, tiny_weights: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs = folders
    for i in range(3):
        shutil.copy(inputs / "good_0000.nii.gz", inputs / f"case{i}.nii.gz")
    outputs.mkdir()
    segmenter = Segmenter.load(tiny_weights, device="cpu")
    monkeypatch.setattr("app.segmenter.load_checkpoint", lambda *_: pytest.fail("loaded again"))
    log = RunLog(outputs)
    RunOverCases(CaseRunner(segmenter), log).do(CaseQueue(find_cases(inputs, outputs)))
    assert log.exit_status == 0
    assert len(list(outputs.glob("*.nii.gz"))) == 4


def test_help_and_version_do_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "app"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "INPUT OUTPUT" in shown.stdout
    assert not re.search(r"\| +torch$", shown.stderr, re.M)
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert __version__ in shown.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_partial_file(
    tmp_path: pathlib.Path, tiny_weights: pathlib.Path, number: signal.Signals, code: int
) -> None:
    scan = tmp_path / "long_0000.nii.gz"
    write_phantom(scan, shape=(256, 256, 400), spacing_mm=(1.5, 1.5, 1.0))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "app", str(scan), str(output), "--device", "cpu", "--weights", str(tiny_weights)]

    def heed() -> None:  # the tests themselves may run under nohup
        signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "GPU memory" in line:  # the model is loaded, the case begins
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == code, rest
    assert "Traceback" not in rest
    assert [path.name for path in output.iterdir()] == []


def test_a_terminal_gets_a_progress_bar(folders: Folders, tiny_weights: pathlib.Path) -> None:
    inputs, outputs = folders
    command = [sys.executable, "-m", "app", str(inputs), str(outputs), "--weights", str(tiny_weights)]
    ours, theirs = pty.openpty()
    subprocess.run([*command, "--device", "cpu"], stderr=theirs, cwd=ROOT, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert re.search(r"\[1/1\] good +\[#+\] +100%", shown)


@pytest.mark.parametrize("comes_by", ["HOME", "PYTHONPATH", "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHON"])
def test_predict_sh_imports_nothing_of_the_hosts(folders: Folders, tmp_path: pathlib.Path, comes_by: str) -> None:
    """Apptainer mounts the host's home folder and passes its environment on."""
    inputs, outputs = folders
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = tmp_path / "home" / ".local" / "lib" / version / "site-packages"
    for name in ("nibabel", "click"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text("raise ImportError('a library of the host')\n")
    # An interpreter outside a virtual environment, as in the image: others ignore the user's own packages anyway.
    prefix = tmp_path / "prefix" / "lib" / version
    prefix.mkdir(parents=True)
    for path in pathlib.Path(sysconfig.get_path("stdlib")).iterdir():
        if path.name != "site-packages":
            (prefix / path.name).symlink_to(path)
    (prefix / "site-packages").symlink_to(sysconfig.get_path("purelib"))
    interpreter = tmp_path / "bin" / "python3"
    interpreter.parent.mkdir()
    program = pathlib.Path(sys.base_prefix) / "bin" / version
    interpreter.write_text(f'#!/bin/sh\nPYTHONHOME="${{PYTHONHOME:-{tmp_path}/prefix}}" exec "{program}" "$@"\n')
    interpreter.chmod(0o755)
    of_host = {"HOME": tmp_path / "home", "PYTHONPATH": packages, "PYTHONHOME": tmp_path, "PYTHONPLATLIBDIR": "none"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {
        "APPTAINER_CONTAINER": "image.sif",
        "PATH": f"{interpreter.parent}:{os.environ['PATH']}",
        comes_by: str(of_host.get(comes_by, "/opt/of-the-host/bin/python")),
    }
    command = ["sh", str(ROOT / "predict.sh"), str(inputs), str(outputs), "--list-series"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "to be segmented" in shown.stdout


def test_predict_sh_is_posix_and_passes_its_arguments(folders: Folders, tiny_weights: pathlib.Path) -> None:
    inputs, outputs = folders
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["sh", str(ROOT / "predict.sh"), str(inputs), str(outputs), "--weights", str(tiny_weights)]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert shown.returncode == 0, shown.stderr
    assert nib.load(outputs / "good.nii.gz").shape == nib.load(inputs / "good_0000.nii.gz").shape
    assert shown.stdout == ""
    assert "\r" not in shown.stderr  # no progress bar outside a terminal


@pytest.mark.parametrize(
    ("arguments", "status", "line"), [(["--version"], 0, "app, version"), (["--nonsense"], 2, "No such option")]
)
def test_the_program_ends_without_dismantling_what_it_imported(arguments: list[str], status: int, line: str) -> None:
    """With torch that takes a tenth of a second. What was printed is there all the same, and the exit status."""
    code = "import atexit, sys; atexit.register(print, 'dismantled'); from app.__main__ import entry; entry()"
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == status
    assert line in shown.stdout + shown.stderr
    assert "dismantled" not in shown.stdout


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        "app SCANS OUT --list-series",
        "app merge-logs --help",
        "cluster --help",
        "evaluation accuracy --help",
        "training train --help",
    ],
)
def test_standard_output_on_a_full_disk_is_one_line(folders: Folders, command: str, buffered: bool) -> None:
    words = [{"SCANS": str(folders[0]), "OUT": str(folders[1])}.get(word, word) for word in command.split()]
    with pathlib.Path("/dev/full").open("w") as full:
        shown = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith("error: standard output or a file: No space left on device; free")
    assert "Traceback" not in shown.stderr


def test_help_lists_every_option_under_one_heading() -> None:
    shown = CliRunner().invoke(main, ["--help"], prog_name="app").output
    headings = ["Input:", "Output:", "Model:", "Many machines:", "Other options:", "Commands:"]
    assert [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")] == headings
    sections = dict(zip(headings, re.split(r"\n(?=\w[\w ]+:\n)", shown)[1:], strict=True))
    listed = [
        option for text in sections.values() for option in re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    ]
    known = [max(param.opts, key=len) for param in main.params if isinstance(param, click.Option)]
    assert sorted(listed) == sorted([*known, "--help"])
    for heading, option in (("Input:", "--recursive"), ("Output:", "--save"), ("Many machines:", "--shard")):
        assert option in sections[heading]
    assert not [option for option in main.params if isinstance(option, click.Option) and not option.help]


def test_names_of_any_bytes_reach_every_table_page_and_line(
    folders: Folders, tiny_weights: pathlib.Path, phantom_path: pathlib.Path
) -> None:
    """Latin-1 of an old share, a line end, colours of a terminal: one case's name spoils nobody's table."""
    inputs, outputs = folders
    names = [b"good", b"M\xfcller", b"a\nb", b"\x1b[31mred"]
    for name in names[1:]:
        shutil.copy(phantom_path, inputs / os.fsdecode(name + b"_0000.nii.gz"))
    (inputs / os.fsdecode(b"bad\xe9.nii.gz")).write_text("not a scan")
    kinds = [word for name in ("nifti", "statistics", "preview", "viewer") for word in ("--save", name)]
    command = [sys.executable, "-m", "app", *map(str, (inputs, outputs, "--weights", tiny_weights)), "--device", "cpu"]
    shown = subprocess.run([*command, *kinds], cwd=ROOT, capture_output=True, check=False)
    assert shown.returncode == 1, shown.stderr
    lines = shown.stderr.decode().splitlines()
    assert all(line.startswith(("INFO: ", "WARNING: ", "ERROR: ")) for line in lines)
    assert sum(line.startswith("ERROR: ") for line in lines) == 1
    assert b"\x1b" not in shown.stderr
    for name in names:
        for extension in (b".nii.gz", b".statistics.json", b".preview.png", b".viewer.html"):
            assert pathlib.Path(os.fsdecode(os.fsencode(outputs) + b"/" + name + extension)).exists()
    table = (outputs / "statistics.csv").read_text()
    assert {line.split(",")[0] for line in table.splitlines()[1:]} == {"good", r"M\xfcller", r"a\nb", r"\x1b[31mred"}
    index = (outputs / "index.html").read_text()
    assert r"M\xfcller" in index
    assert 'href="M%FCller.viewer.html"' in index
    assert len((outputs / "run_log.jsonl").read_text().splitlines()) == 5
    listed = subprocess.run([*command, "--list-series"], cwd=ROOT, capture_output=True, check=True).stdout
    assert len(listed.decode().splitlines()) == 5


@pytest.mark.parametrize("name", ["app.py", "numpy.py", "json.py"])
def test_the_working_directory_does_not_decide_what_runs(
    tmp_path: pathlib.Path, name: str, phantom_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    (tmp_path / name).write_text("raise SystemExit('hijacked')\n")
    command = ["sh", str(ROOT / "predict.sh"), str(phantom_path), str(tmp_path / "out"), "--weights", str(tiny_weights)]
    environment = os.environ | {"PYTHON": sys.executable}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "out" / "phantom.nii.gz").exists()


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>/dev/full >/dev/full"])
def test_a_closed_or_full_stream_ends_nothing(
    tmp_path: pathlib.Path, redirection: str, phantom_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    command = f"exec {sys.executable} -m app {phantom_path} {tmp_path} --weights {tiny_weights} {redirection}"
    code = subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode
    assert code == 0
    assert nib.load(tmp_path / "phantom.nii.gz").shape == (128, 128, 20)


def test_every_name_that_a_scan_may_have_its_mask_may_have(
    tmp_path: pathlib.Path, phantom_path: pathlib.Path, run: Run
) -> None:
    names = {
        "x" * 248 + ".nii.gz": "x" * 248 + ".nii.gz",
        "ä" * 121 + "_0000.nii.gz": "ä" * 121 + ".nii.gz",
        "UPPER_0000.NII.GZ": "UPPER.nii.gz",
        "Mixed.Nii.gz": "Mixed.nii.gz",
        "with space 'and' quote_0000.nii.gz": "with space 'and' quote.nii.gz",
    }
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(phantom_path, tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out").code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names.values(), "run_log.jsonl"}


def test_a_pipe_is_refused_at_once(tmp_path: pathlib.Path, phantom_path: pathlib.Path, run: Run) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "a_0000.nii.gz")
    shutil.copy(phantom_path, tmp_path / "in" / "b_0000.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out").code == 1
    first, second = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert first["error"].endswith("not a regular file (a pipe, socket or device); copy the scan to a file")
    assert second["status"] == "done"
    with pytest.raises(VolumeError, match="not a regular file"):
        open_volume(pathlib.Path("/dev/zero"))


def test_an_interrupt_while_libraries_are_imported_prints_no_traceback() -> None:
    script = (
        "import os, signal, app.__main__ as program\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell lets what it runs with & ignore it
        "program.quick_imports.import_nibabel = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "program.entry()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGINT, "", "")


@pytest.mark.parametrize("place", [0, 1])
def test_an_empty_path_is_not_the_folder_that_the_program_runs_in(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.chdir(folders[0])
    arguments = [str(folder) for folder in folders]
    arguments[place] = ""
    result = CliRunner().invoke(main, [*arguments, "--list-series"])
    assert result.exit_code == 2
    assert "an empty path; is a variable unset?" in result.output
