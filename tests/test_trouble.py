"""Trouble from outside, found with public bug reports of other tools: each kind by more than one instance."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from app import Segmenter, host
from app.cases import check_output, find_cases
from app.cli import main
from app.errors import InputError, VolumeError
from app.inference.intensities import Intensities
from app.run_log import RUN_LOG, CaseRecord, append, done_cases
from app.volumes import open_volume
from app.whole_file import clear_stale, whole_file
from evaluation.__main__ import main as evaluation_main
from evaluation.labels import LabelError, read_labels
from phantom import make_phantom, write_phantom
from tests.conftest import ROOT
from tests.fuzz import dicom_inputs, fuzz_reader, fuzz_whole, nifti_inputs
from tests.nifti_files import affine_lps, read_volume, save, volume_lps


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "case_0000.nii.gz"


def edit(path: pathlib.Path, change: Callable[[bytearray], object]) -> None:
    """Change a .nii.gz file's plain content."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(data))


def put(offset: int, *values: float, form: str = "<f4") -> Callable[[bytearray], None]:
    packed = np.array(values, form).tobytes()

    def change(data: bytearray) -> None:
        data[offset : offset + len(packed)] = packed

    return change


# 1: header values are trusted before memory is allocated


@pytest.mark.parametrize("change", ["unit", "spacing", "infinite"])
def test_a_size_that_no_patient_has_is_one_line(path: pathlib.Path, change: str) -> None:
    affine = np.diag([1e6, 1e6, 2.0, 1.0]) if change == "spacing" else np.diag([0.8, 0.8, 2.0, 1.0])
    image = nib.Nifti1Image(np.zeros((64, 64, 4), np.int16), affine)
    image.header.set_xyzt_units("meter" if change == "unit" else "mm")
    nib.save(image, path)
    if change == "infinite":
        edit(path, put(280, 1e38, 0, 0, 0))  # srow_x
    with pytest.raises(VolumeError, match=r"case_0000\.nii\.gz: the scan measures .* no patient does; repair its spac"):
        open_volume(path)


def test_a_size_too_small_for_an_abdomen_is_a_warning(path: pathlib.Path) -> None:
    image = nib.Nifti1Image(np.zeros((64, 64, 4), np.int16), np.diag([0.8, 0.8, 2.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, path)
    assert any("too little for an abdomen" in warning for warning in open_volume(path).warnings)


def test_a_slice_that_cannot_fit_into_memory_is_refused_before_the_system_ends_the_process(
    phantom_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tiny_weights: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copy(phantom_path, tmp_path / "a_0000.nii.gz")
    monkeypatch.setattr("app.engines.openvino_engine.available_memory", lambda: 1000)
    arguments = [str(tmp_path), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    (record,) = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert record["error"].startswith("cpu: not enough memory for a slice of 64 x 64; free memory")


@pytest.mark.parametrize(
    "refusal", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 18.00 MiB"), MemoryError("12.1 GiB")]
)
@pytest.mark.parametrize(
    "place",
    ["openvino_engine.prepared", "openvino_engine.to_labels", "torch_engine.windowed_slice", "torch_engine.to_scan"],
)
def test_memory_that_runs_out_beside_the_network_is_one_clear_line_and_the_next_case_goes_on(
    place: str,
    refusal: Exception,
    phantom_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_weights: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    for name in "ab":
        shutil.copy(phantom_path, tmp_path / f"{name}_0000.nii.gz")
    module, name = f"app.engines.{place}".rsplit(".", 1)
    real, calls = getattr(importlib.import_module(module), name), itertools.count()

    def full_at_first(*arguments: object) -> object:
        if next(calls) == 0:
            raise refusal
        return real(*arguments)

    monkeypatch.setattr(f"{module}.{name}", full_at_first)
    engine = place.split("_")[0]
    arguments = [str(tmp_path), str(tmp_path / "out"), "--engine", engine, "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, [*arguments, "--device", "cpu"]).exit_code == 1
    one, two = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert one["error"].startswith("cpu: not enough memory for a slice of 64 x 64; free memory")
    assert two["status"] == "done"


# 2: one outlier voxel decides whether intensities are HU


def phantom_values(change: Callable[[np.ndarray], np.ndarray]) -> Intensities:
    volume = change(make_phantom((96, 96, 12), (4.0, 4.0, 20.0))[0].astype(np.int32))
    found = Intensities()
    for z in range(volume.shape[2]):
        found.add(np.ascontiguousarray(volume[:, :, z].T.clip(-32768, 32767).astype(np.int16)))
    return found


def outlier(volume: np.ndarray, value: int) -> np.ndarray:
    volume[:4, :4, 0] = value
    return volume


def corners(volume: np.ndarray, value: int) -> np.ndarray:
    volume[:12, :12] = volume[-12:, -12:] = value
    return volume


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: volume,
        lambda volume: volume.clip(-125, 275),  # windowed, as many public sets are
        lambda volume: volume.clip(-1024, 3071),
        lambda volume: corners(volume, -2000),
        lambda volume: corners(volume, -3024),
        lambda volume: outlier(volume, 30000),
        lambda volume: np.zeros_like(volume) - 1000,  # only air: there is nothing to judge
    ],
)
def test_hounsfield_units_raise_no_doubt(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert phantom_values(change).doubts() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: volume + 1024,
        lambda volume: corners(volume + 1024, -2000),
        lambda volume: corners(volume + 1024, -1024),
        lambda volume: outlier(volume + 1024, -1000),
    ],
)
def test_an_offset_that_was_not_applied_is_named(change: Callable[[np.ndarray], np.ndarray]) -> None:
    doubt = phantom_values(change).doubts()
    assert doubt is not None
    assert "do not look like Hounsfield units" in doubt
    assert "subtract 1024, the offset that was not applied" in doubt


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: (volume.clip(-125, 275) + 125) * 255 // 400,  # 8 bits
        lambda volume: outlier((volume.clip(-125, 275) + 125) * 255 // 400, -500),
        lambda volume: np.sign(volume),  # -1..1
        lambda volume: volume // 20,
    ],
)
def test_other_scales_are_doubted(change: Callable[[np.ndarray], np.ndarray]) -> None:
    doubt = phantom_values(change).doubts()
    assert doubt is not None
    assert "check the scan's rescaling" in doubt


def test_the_python_call_warns_too(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, tiny_weights: pathlib.Path
) -> None:
    image, _ = make_phantom((64, 64, 8), (5.0, 5.0, 30.0))
    save(tmp_path / "a.nii.gz", image + 1024, np.diag([-5.0, -5, 30, 1]))
    with caplog.at_level(logging.WARNING, logger="app"):
        Segmenter.load(tiny_weights, "cpu").segment(tmp_path / "a.nii.gz")
    assert any("a.nii.gz: intensities" in text and "subtract 1024" in text for text in caplog.messages)


def test_an_organ_larger_than_any_known_is_doubted(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    write_phantom(tmp_path / "a.nii.gz", None, (64, 64, 14), (4.0, 4.0, 18.0), seed=3)
    image = nib.load(tmp_path / "a.nii.gz")
    affine = image.affine.copy()
    affine[:3, :3] *= (1.5, 1.5, 12)  # 4 x 4 x 18 mm became 6 x 6 x 216
    save(tmp_path / "b.nii.gz", np.asarray(image.dataobj), affine)
    with caplog.at_level(logging.WARNING, logger="app"):
        Segmenter.load("fast", "cpu").segment(tmp_path / "b.nii.gz")
    assert any("liver of" in text and "larger than any known" in text for text in caplog.messages)


# 4, 16, 17: a field that is not needed stops a scan; an undefined code; an affine without an orientation


@pytest.mark.parametrize(
    "change",
    [
        *(put(76, 0.0), put(76, np.nan), put(76, 3.0), put(256, 5.0, 5.0, 5.0), put(256, np.nan)),
        *(put(123, 7, form="u1"), put(123, 255, form="u1"), put(252, -3, form="<i2"), put(54, 0, form="<i2")),
    ],
)
def test_a_field_that_is_not_needed_stops_nothing(path: pathlib.Path, change: Callable[[bytearray], None]) -> None:
    image = nib.Nifti1Image(volume_lps(), affine_lps())
    image.set_qform(affine_lps(), code=1)
    nib.save(image, path)
    twin = open_volume(path).geometry
    edit(path, change)
    np.testing.assert_array_equal(open_volume(path).geometry.affine, twin.affine)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


@pytest.mark.parametrize("row", [[1e-200, 0, 0, 0], [0, 0, 2.0, 0], [np.inf, 0, 0, 0], [1e200, 1e200, 0, 0]])
def test_an_affine_whose_axes_cannot_be_told_apart_is_one_line(path: pathlib.Path, row: list[float]) -> None:
    nib.save(nib.Nifti2Image(volume_lps(), affine_lps()), path)
    edit(path, put(400, *row, form="<f8"))
    with pytest.raises(VolumeError, match=r"case_0000\.nii\.gz: singular affine"):
        open_volume(path)


# 5: voxels that begin inside the header


@pytest.mark.parametrize("offset", [0.0, 100.0, 351.0, -5.0, np.nan, np.inf, 1e30])
def test_voxels_cannot_begin_inside_the_header(path: pathlib.Path, offset: float) -> None:
    save(path, volume_lps())
    edit(path, put(108, offset))
    with pytest.raises(VolumeError, match=r"voxels begin at byte .*, expected 352 or more; export it again"):
        open_volume(path)


# 6, 7: evaluation trusts damaged files, and trips over stray ones


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Predictions and references of cases a and b."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:4], labels[4:6], labels[6], labels[7] = 1, 2, 3, 4
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / folder / f"{name}.nii.gz")
    return tmp_path / "p", tmp_path / "r"


def test_no_damaged_byte_of_a_mask_goes_unseen(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """Every single bit of the file: either nothing changes, or the file is named."""
    path = folders[0] / "a.nii.gz"
    whole, before = path.read_bytes(), read_labels(path, range(5))[0]
    assert len(whole) < 100
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        labels = None
        with contextlib.suppress(LabelError):
            labels, _ = read_labels(path, range(5))
        assert labels is None or np.array_equal(labels, before), f"bit {bit}"


def test_a_damaged_mask_is_named_and_the_others_are_scored(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = folders[0] / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    (folders[1] / "._b.nii.gz").write_text("what macOS leaves")
    (folders[1] / "notes.txt").write_text("a note")
    result = CliRunner().invoke(evaluation_main, ["accuracy", *map(str, folders), "--out", str(tmp_path / "report")])
    assert result.exit_code == 1
    assert f"error: {path}: " in result.output
    assert "skipped, no masks: ._b.nii.gz, notes.txt" in result.output
    rows = (tmp_path / "report" / "scores.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["b.nii.gz"]


# 8, 9: the working directory and closed streams


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


# 10, 13: names, and what is no file


@pytest.fixture
def run(tiny_weights: pathlib.Path) -> Callable[[pathlib.Path, pathlib.Path], int]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(source: pathlib.Path, output: pathlib.Path) -> int:
        options = ["--device", "cpu", "--weights", str(tiny_weights)]
        code = CliRunner().invoke(main, [str(source), str(output), *options]).exit_code
        for number, handler in previous.items():
            signal.signal(number, handler)
        return code

    return call


def test_every_name_that_a_scan_may_have_its_mask_may_have(
    tmp_path: pathlib.Path, phantom_path: pathlib.Path, run: Callable[..., int]
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
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names.values(), "run_log.jsonl"}


@pytest.mark.parametrize("name", ["_0000.nii.gz", "_0000.nii", "_0000.NII"])
def test_a_name_of_which_nothing_is_left_is_one_line(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).touch()
    (case,) = find_cases(tmp_path, tmp_path / "out")
    assert case.scan.problem == f"{tmp_path / name}: nothing is left of its name without _0000; rename it"


def test_a_pipe_is_refused_at_once(tmp_path: pathlib.Path, phantom_path: pathlib.Path, run: Callable[..., int]) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "a_0000.nii.gz")
    shutil.copy(phantom_path, tmp_path / "in" / "b_0000.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out") == 1
    first, second = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert first["error"].endswith("not a regular file (a pipe, socket or device); copy the scan to a file")
    assert second["status"] == "done"
    with pytest.raises(VolumeError, match="not a regular file"):
        open_volume(pathlib.Path("/dev/zero"))


# 11, 15: permissions, and two containers with the same process number


@pytest.mark.parametrize("method", ["pathlib.Path.exists", "os.scandir", "pathlib.Path.is_dir"])
def test_a_folder_that_may_not_be_searched_is_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def denied(self: pathlib.Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(method, denied)
    with pytest.raises(InputError, match=f"{tmp_path}.*: cannot be used .Permission denied.; check its path"):
        find_cases(tmp_path, tmp_path / "out")


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"cannot be used .File name too long.; check its path and permissions"):
        find_cases(tmp_path / ("x" * 300), tmp_path)
    with pytest.raises(InputError, match=r"not writable .File name too long.; check its owner"):
        check_output(tmp_path / ("x" * 300))


def test_probing_the_output_folder_leaves_and_meets_no_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers that share a process number may probe one folder at once."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    (tmp_path / ".7.partial").touch()
    for _ in range(2):
        check_output(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".7.partial"]  # young: its owner may be about to lock it


# 12: bookkeeping that a kernel does not offer


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "status").write_text("Name:\tpython\nVmHWM:\n")  # gVisor's lacks the number
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "proc" / "meminfo")
    return tmp_path / "proc"


def test_a_figure_that_cannot_be_had_is_null(
    no_proc: pathlib.Path, phantom_path: pathlib.Path, tmp_path: pathlib.Path, run: Callable[..., int]
) -> None:
    assert host.peak_rss_mib() is None
    assert host.seconds_since_process_start() is None
    assert host.available_memory() > 0
    assert run(phantom_path, tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "run_log.jsonl").read_text())
    assert record["host_peak_rss_mib"] is None
    assert record["seconds"]["start_up"] is None
    assert record["status"] == "done"


# 14: bytes after the gzip stream


@pytest.mark.parametrize("tail", [b"x", b"signature of somebody" * 100, b"\x1f\x8b", b"\x1f\x8b\x08 no", bytes(5000)])
def test_bytes_after_the_gzip_stream_are_ignored(path: pathlib.Path, tail: bytes) -> None:
    save(path, volume_lps())
    path.write_bytes(path.read_bytes() + tail)
    np.testing.assert_array_equal(read_volume(path), volume_lps().transpose(2, 1, 0))


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 40])
def test_a_second_member_that_is_cut_is_no_trailing_garbage(path: pathlib.Path, cut: int) -> None:
    save(path, volume_lps())
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:])[:-cut])
    with pytest.raises(VolumeError, match="truncated"):
        read_volume(path)


# Partial files, and the campaign in short


def test_partial_files_of_the_dead_are_cleared_and_those_of_the_living_kept(tmp_path: pathlib.Path) -> None:
    long_ago = time.time() - 100
    (tmp_path / ".dead.partial").touch()
    os.utime(tmp_path / ".dead.partial", (long_ago, long_ago))
    with whole_file(tmp_path / "living.txt") as stream:
        stream.write(b"half")
        stream.flush()
        (partial,) = tmp_path.glob(".????????????????.partial")
        os.utime(partial, (long_ago, long_ago))
        clear_stale(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [partial.name]
    assert [p.name for p in tmp_path.iterdir()] == ["living.txt"]


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


def test_mutated_files_break_no_rule(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    for source, count in ((nifti_inputs(1), 600), (dicom_inputs(1), 150)):
        outcomes, broken = fuzz_reader(tmp_path, source, count, tmp_path / "kept")
        assert broken == 0, outcomes
        assert min(outcomes["read"], outcomes["refused"]) > count / 6
    outcomes, broken = fuzz_whole(tmp_path, 30, 1, ["--weights", str(tiny_weights)])
    for number, handler in previous.items():
        signal.signal(number, handler)
    assert broken == 0, outcomes
    assert min(outcomes["done"], outcomes["failed"]) > 3
