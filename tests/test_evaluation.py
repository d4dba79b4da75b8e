"""DSC and NSD against values computed here in another way, the organisers' rules, and what cannot be scored."""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from app.organs import ORGANS, Organ
from evaluation.__main__ import main
from evaluation.accuracy import CaseScores, EvaluationError, evaluate, evaluate_case
from evaluation.figures import ORGAN_COLORS
from evaluation.labels import LabelError, read_labels
from evaluation.metrics import PROTOCOLS, Score, score_case, score_organ
from evaluation.summary import bootstrap_interval, summarise
from evaluation.tables import table
from tests.conftest import ROOT

FLARE21 = PROTOCOLS["flare21"]


def die(*_: object, **__: object) -> None:
    """As a process dies that takes too much memory."""
    assert multiprocessing.parent_process(), "this is the process of the tests"
    os.kill(os.getpid(), signal.SIGKILL)


def brute_surface_dice(
    reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...], tolerance: float
) -> float:
    """Surface Dice by comparing every surface element with every other; only their areas come from the library's table.

    A surface element sits on a corner between eight voxels that are not all alike.
    """
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    areas = create_table_neighbour_code_to_surface_area(spacing)

    def corners(mask: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        padded = np.pad(mask, 1).astype(int)
        code = np.zeros(np.array(padded.shape) - 1, int)
        for bit, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
            x, y, z = padded.shape
            code += padded[i : x - 1 + i, j : y - 1 + j, k : z - 1 + k] << (7 - bit)
        at = np.argwhere((code > 0) & (code < 255))
        return at * np.array(spacing), np.array([areas[code[tuple(p)]] for p in at])

    (points_a, area_a), (points_b, area_b) = corners(reference), corners(prediction)
    distances = np.linalg.norm(points_a[:, None] - points_b[None], axis=2)
    near = area_a[distances.min(1) <= tolerance].sum() + area_b[distances.min(0) <= tolerance].sum()
    return float(near / (area_a.sum() + area_b.sum()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5)])
def test_random_volumes(seed: int, spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    reference, prediction = (rng.random((7, 8, 6)) < share for share in (0.3, 0.4))
    score = score_organ(reference, prediction, spacing, 1.0)
    both = sum(bool(a) and bool(b) for a, b in zip(reference.flat, prediction.flat, strict=True))
    assert score.dice == pytest.approx(2 * both / (int(reference.sum()) + int(prediction.sum())), abs=1e-6)
    assert score.surface_dice == pytest.approx(brute_surface_dice(reference, prediction, spacing, 1.0), abs=1e-6)


@pytest.mark.parametrize(
    ("shift", "tolerance", "expected"),
    [(0, 1.0, 1.0), (1, 1.0, 1.0), (1, 0.9, None), (3, 1.0, None)],
)
def test_a_shifted_block(shift: int, tolerance: float, expected: float | None) -> None:
    """A block of 6 x 6 x 6 mm, shifted along x: within 1 mm both surfaces are near, beyond it the end faces are not."""
    reference, prediction = np.zeros((14, 10, 10), bool), np.zeros((14, 10, 10), bool)
    reference[2:8, 2:8, 2:8] = True
    prediction[2 + shift : 8 + shift, 2:8, 2:8] = True
    score = score_organ(reference, prediction, (1.0, 1.0, 1.0), tolerance)
    assert score.dice == pytest.approx((6 - shift) / 6, abs=1e-6)
    brute = brute_surface_dice(reference, prediction, (1.0, 1.0, 1.0), tolerance)
    assert score.surface_dice == pytest.approx(brute if expected is None else expected, abs=1e-6)


def test_one_voxel_the_border_and_a_slab() -> None:
    one = np.zeros((5, 5, 5), bool)
    one[0, 0, 0] = True  # touches the border
    assert score_organ(one, one, (1.0, 1.0, 5.0), 1.0) == Score(1.0, 1.0)
    slab = np.ones((5, 5, 1), bool)
    assert score_organ(slab, slab, (0.5, 0.5, 10.0), 1.0) == Score(1.0, 1.0)
    other = np.zeros((5, 5, 5), bool)
    other[4, 4, 4] = True
    assert score_organ(one, other, (1.0, 1.0, 1.0), 1.0) == Score(0.0, 0.0)


def test_the_organisers_rules_for_empty_masks() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert score_organ(empty, empty, (1.0, 1.0, 1.0), 1.0) == Score(1.0, 1.0)
    assert score_organ(empty, full, (1.0, 1.0, 1.0), 1.0) == Score(0.0, 0.0)
    assert score_organ(full, empty, (1.0, 1.0, 1.0), 1.0) == Score(0.0, 0.0)


def test_flare22_tolerances_and_its_least_dice() -> None:
    protocol = PROTOCOLS["flare22"]
    reference = np.zeros((30, 10, 10), np.uint8)
    reference[5:15, 2:8, 2:8] = Organ.KIDNEYS
    prediction = np.roll(reference, 3, axis=0)
    assert score_case(reference, prediction, (1.0, 1.0, 1.0), protocol)[Organ.KIDNEYS].surface_dice == 1.0  # 3 mm
    assert score_case(reference, prediction, (1.0, 1.0, 1.0), FLARE21)[Organ.KIDNEYS].surface_dice < 1.0
    prediction = np.roll(reference, 9, axis=0)  # DSC 0.1
    score = score_case(reference, prediction, (1.0, 1.0, 1.0), protocol)[Organ.KIDNEYS]
    assert score.dice == pytest.approx(0.1)
    assert score.surface_dice == 0.0
    assert score_case(reference, prediction, (1.0, 1.0, 1.0), FLARE21)[Organ.KIDNEYS].surface_dice > 0.0


def test_what_nobody_annotated_is_left_out() -> None:
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[:3] = Organ.LIVER
    reference[4:] = 255
    prediction = np.zeros_like(reference)
    prediction[:3] = prediction[4:] = Organ.LIVER
    assert score_case(reference, prediction, (1.0, 1.0, 1.0), FLARE21)[Organ.LIVER] == Score(1.0, 1.0)


def test_the_bootstrap_interval_holds_the_mean() -> None:
    sample = np.array([0.7, 0.8, 0.9, 0.95])
    low, high = bootstrap_interval(sample)
    assert 0.7 <= low < sample.mean() < high <= 0.95
    assert bootstrap_interval(np.array([0.5])) == (0.5, 0.5)
    assert bootstrap_interval(sample) == (low, high)  # the same every time


def test_the_bootstrap_interval_of_two_values_by_hand() -> None:
    """Of means of two draws, a quarter are 0 and a quarter 1, so both ends of the interval are."""
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_the_summary_keeps_organs_and_measures_apart() -> None:
    path, nothing = pathlib.Path("a.nii.gz"), dict.fromkeys(ORGANS, 0.0)
    scores = [{organ: Score(organ / 10 + i / 100, organ / 20) for organ in ORGANS} for i in (0, 1)]
    summary = summarise([CaseScores("a", path, path, one, nothing, nothing) for one in scores])
    for organ in ORGANS:
        assert summary[organ]["DSC"].mean == pytest.approx(organ / 10 + 0.005)
        assert summary[organ]["DSC"].std == pytest.approx(0.01 / 2**0.5)
        assert summary[organ]["NSD"].median == pytest.approx(organ / 20)


def test_a_table_holds_whatever_a_cell_holds() -> None:
    assert table(["a", "b"], [["x|y", 1], ["two\nlines", None]]).splitlines() == [
        "| a | b |",
        "|---|---|",
        r"| x\|y | 1 |",
        "| two lines | None |",
    ]
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        table(["a", "b"], [["x"]])


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Predictions and references of two cases; the second has no prediction."""
    predictions, references = tmp_path / "p", tmp_path / "r"
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:4], labels[4:6], labels[6], labels[7] = 1, 2, 3, 4
    for folder, names in ((predictions, ["a"]), (references, ["a", "b"])):
        folder.mkdir()
        for name in names:
            nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"{name}.nii.gz")
    return predictions, references


def test_a_missing_prediction_counts_as_zero_and_is_named(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    result = CliRunner().invoke(main, ["accuracy", *map(str, folders), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert "no prediction for b, scored 0" in result.output
    assert "no reference shows" not in result.output
    rows = list(csv.reader((tmp_path / "report" / "scores.csv").read_text().splitlines()))
    assert ",".join(rows[0]) == "Name,DSC_1,NSD-1mm_1,DSC_2,NSD-1mm_2,DSC_3,NSD-1mm_3,DSC_4,NSD-1mm_4"
    assert rows[1] == ["a.nii.gz", *["1.0000"] * 8]
    assert rows[2] == ["b.nii.gz", *["0.0000"] * 8]
    assert "| liver | 50.00 ± 70.71 | 50.00 ± 70.71 | 1 mm | 50.00 | 0.00 .. 100.00 |" in result.output


def test_an_organ_that_no_reference_shows_is_a_warning(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """As where one organ alone was annotated: its scores look like those of a bad mask."""
    for path in folders[1].iterdir():
        image = nib.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[labels == Organ.SPLEEN] = 0
        nib.save(nib.Nifti1Image(labels, image.affine), path)
    result = CliRunner().invoke(main, ["accuracy", *map(str, folders), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert result.output.count("warning: no reference shows ") == 1
    assert "warning: no reference shows spleen; where masks do, the score is 0" in result.output


@pytest.mark.parametrize(
    ("labels", "affine", "line"),
    [
        (np.zeros((8, 8, 7), np.uint8), np.eye(4), "shape (8, 8, 7), the reference has (8, 8, 8); resample it onto"),
        (np.zeros((8, 8, 8), np.uint8), np.diag([2.0, 1, 1, 1]), "its affine is not the reference's; resample it onto"),
        (np.full((8, 8, 8), 7, np.uint8), np.eye(4), "holds the value 7; labels are 0, 1, 2, 3, 4"),
        (np.full((8, 8, 8), 0.5, np.float32), np.eye(4), "holds the value 0.5; labels are 0, 1, 2, 3, 4"),
    ],
)
def test_what_cannot_be_scored_names_the_case(
    folders: tuple[pathlib.Path, pathlib.Path], labels: NDArray[Any], affine: NDArray[Any], line: str
) -> None:
    predictions, references = folders
    nib.save(nib.Nifti1Image(labels, affine), predictions / "a.nii.gz")
    with pytest.raises(LabelError, match=re.escape(f"{predictions}/a.nii.gz: {line}")):
        evaluate_case(("a", references / "a.nii.gz", predictions / "a.nii.gz"), FLARE21)


def test_a_report_is_utf_8_in_every_locale(folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    for folder in folders:
        (folder / "a.nii.gz").rename(folder / "Müller.nii.gz")
    ended = subprocess.run(
        [sys.executable, "-m", "evaluation", "accuracy", *folders, "--out", tmp_path / "report"],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    for name in ("scores.csv", "table.md", "report.html"):
        assert "Müller" in (tmp_path / "report" / name).read_text("utf-8"), name


@pytest.mark.parametrize("command", ["accuracy", "confidence"])
def test_a_report_that_cannot_be_written_is_an_error_before_anything_is_scored(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("evaluation.__main__.evaluate", lambda *_: pytest.fail("scored"))
    result = CliRunner().invoke(main, [command, *map(str, folders), "--out", str(tmp_path / "file" / "report")])
    assert result.exit_code == 1
    assert (
        result.output
        == f"error: {tmp_path / 'file' / 'report'}: Not a directory; check the folder and its permissions\n"
    )


def test_a_picture_that_cannot_be_written_is_one_line(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    scan = nib.load(phantom_path)
    nib.save(nib.Nifti1Image(np.ones(scan.shape, np.uint8), scan.affine), tmp_path / "mask.nii.gz")
    out = tmp_path / "missing" / "x.png"
    result = CliRunner().invoke(main, ["picture", str(phantom_path), str(tmp_path / "mask.nii.gz"), str(out)])
    assert result.exit_code == 1
    assert result.output == f"error: {out}: No such file or directory; check the folder and its permissions\n"


def test_no_references_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EvaluationError, match=r"no \.nii\.gz references"):
        evaluate(tmp_path, tmp_path, FLARE21)


def test_the_volume_of_a_sheared_voxel_is_its_determinant(tmp_path: pathlib.Path) -> None:
    affine = np.array([[-2.0, 0, 0, 0], [0, -2, 3, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.ones((10, 10, 10), np.uint8), affine), tmp_path / "a.nii.gz")
    scores = evaluate_case(("a", tmp_path / "a.nii.gz", tmp_path / "a.nii.gz"), FLARE21)
    assert scores.prediction_ml[Organ.LIVER] == pytest.approx(1000 * 2 * 2 * 4 / 1000)


NAMES = {
    "extension": ("a.nii.gz", "a.nii"),
    "extension in capitals": ("a.NII.GZ", "a.nii.gz"),
    "Unicode form": (unicodedata.normalize("NFC", "Zoë.nii.gz"), unicodedata.normalize("NFD", "Zoë.nii.gz")),
    "not UTF-8": ("Zo\udceb.nii.gz", "Zo\udceb.nii.gz"),
}


@pytest.mark.parametrize(("prediction", "reference"), NAMES.values(), ids=NAMES.keys())
def test_masks_and_references_are_paired_by_the_name_of_the_case(
    tmp_path: pathlib.Path, prediction: str, reference: str
) -> None:
    labels = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    scans = tmp_path / "scans"
    for folder, name in ((tmp_path / "p", prediction), (tmp_path / "r", reference), (scans, "other.nii.gz")):
        folder.mkdir()
        plain = folder / ("one.nii.gz" if name.lower().endswith(".gz") else "one.nii")
        nib.save(labels, plain)
        plain.rename(folder / name)
    out = tmp_path / "report"
    arguments = ["accuracy", str(tmp_path / "p"), str(tmp_path / "r"), "--out", str(out), "--images", str(scans)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "no prediction" not in result.output
    assert f"warning: {scans}: no scan of " in result.output
    assert (out / "scores.csv").read_text().splitlines()[1].split(",")[1:3] == ["1.0000", "1.0000"]
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "nothing matches",
            "no mask has the name of a reference, so there is nothing to score; masks: c; references: a, b",
        ),
        ("empty", "no mask has the name of a reference, so there is nothing to score; masks: none; references: a, b;"),
        ("unknown case", "no reference of case d; there are a, b"),
        (
            "only the missing case",
            "no mask has the name of a reference, so there is nothing to score; masks: a; references: b",
        ),
        ("two of one case", "a.nii and a.nii.gz are one case; remove or rename one"),
    ],
)
def test_a_scoring_in_which_nothing_belongs_together_is_an_error(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path, change: str, line: str
) -> None:
    mask, options = folders[0] / "a.nii.gz", []
    if change == "nothing matches":
        mask.rename(mask.with_name("c.nii.gz"))
    elif change == "empty":
        mask.unlink()
    elif change == "two of one case":
        (folders[0] / "a.nii").write_bytes(b"")
    else:
        options = ["--case", "d" if change == "unknown case" else "b"]
    result = CliRunner().invoke(main, ["accuracy", *map(str, folders), "--out", str(tmp_path / "report"), *options])
    assert result.exit_code == 1
    assert line in result.output
    assert not (tmp_path / "report").exists()


def test_a_process_that_is_killed_while_it_scores_is_an_error(
    folders: tuple[pathlib.Path, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folders[0] / "a.nii.gz", folders[0] / "b.nii.gz")  # alone, it would be scored in this process
    monkeypatch.setattr("evaluation.processes.usable_cpus", lambda: 2)
    monkeypatch.setattr("evaluation.accuracy._score_or_error", die)
    with pytest.raises(EvaluationError, match="scoring: a process was killed, most often for want of memory"):
        evaluate(*folders, FLARE21)


def test_a_picture_of_a_scan_and_its_mask(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    mask, picture = phantom_path.with_name("phantom.nii.gz"), tmp_path / "picture.png"
    result = CliRunner().invoke(main, ["picture", str(phantom_path), str(mask), str(picture)])
    assert result.exit_code == 0, result.output
    image = cv2.imread(str(picture))
    assert image is not None
    pixels = image.reshape(-1, 3)[:, ::-1]
    for color in ORGAN_COLORS.values():
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels.astype(int) - rgb).max(1) < 12).sum() > 100, color
    result = CliRunner().invoke(main, ["picture", str(phantom_path), str(phantom_path), str(picture)])
    assert result.exit_code == 1
    assert "labels are 0, 1, 2, 3, 4" in result.output
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), tmp_path / "cut.nii.gz")
    result = CliRunner().invoke(main, ["picture", str(phantom_path), str(tmp_path / "cut.nii.gz"), str(picture)])
    assert result.exit_code == 1
    assert "cut.nii.gz: shape" in result.output


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
    shutil.copy(folders[1] / "b.nii.gz", folders[0])
    (folders[1] / "._b.nii.gz").write_text("what macOS leaves")
    (folders[1] / "notes.txt").write_text("a note")
    result = CliRunner().invoke(main, ["accuracy", *map(str, folders), "--out", str(tmp_path / "report")])
    assert result.exit_code == 1
    assert f"error: {path}: " in result.output
    assert "skipped, no masks: ._b.nii.gz, notes.txt" in result.output
    rows = (tmp_path / "report" / "scores.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["b.nii.gz"]


@pytest.mark.parametrize("place", ["p", "r", "."])
def test_labels_that_mean_other_organs_are_not_scored(
    folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path, place: str
) -> None:
    """nnU-Net writes such a file beside its masks; in a data set it lies above the labels."""
    (tmp_path / place / "dataset.json").write_text('{"labels": {"background": 0, "spleen": 1, "liver": 3}}')
    with pytest.raises(EvaluationError, match=r"dataset\.json: calls label 1 'spleen', which is liver here"):
        evaluate(*folders, FLARE21)


def test_masks_are_scored_where_no_process_can_be_started(
    folders: tuple[pathlib.Path, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Semaphores need a writable /dev/shm."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    assert [case.name for case in evaluate(*folders, FLARE21).scored] == ["a", "b"]
