"""The DSC that the network expects: by its definition, and held against the true one by `evaluation confidence`."""

from __future__ import annotations

import json
import pathlib

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.special import softmax

from app.inference.confidence import Confidence
from app.organs import ORGANS, Organ
from app.segmenter import CHECK_BELOW
from evaluation.__main__ import main


def test_it_is_the_dsc_with_the_references_expectation() -> None:
    slices = np.random.default_rng(0).normal(size=(3, 5, 6, 7)).astype(np.float32) * 3
    slices[:, Organ.SPLEEN] -= 50  # seen nowhere
    confidence = Confidence(ORGANS)
    for logits in slices:
        confidence.add(logits)
    found = confidence.of_organs()
    probabilities, labels = softmax(slices.astype(float), axis=1), slices.argmax(axis=1)
    for organ in (Organ.LIVER, Organ.KIDNEYS, Organ.PANCREAS):
        p, mask = probabilities[:, organ], labels == organ
        assert found[organ] == pytest.approx(2 * (p * mask).sum() / (p.sum() + mask.sum()), rel=1e-5)
    assert found[Organ.SPLEEN] is None


def test_a_sure_network_expects_1_and_one_that_saw_nothing_has_no_opinion() -> None:
    confidence = Confidence(ORGANS)
    assert set(confidence.of_organs().values()) == {None}
    confidence.add(50 * np.eye(5, dtype=np.float32)[:, np.array([[0, 1, 1], [2, 3, 4]])])
    assert confidence.of_organs() == pytest.approx(dict.fromkeys(confidence.of_organs(), 1.0))


@pytest.fixture
def scored(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Masks of four cases and their references; the further on, the fewer voxels of each organ are right."""
    predictions, references = tmp_path / "masks", tmp_path / "references"
    for folder in (predictions, references):
        folder.mkdir()
    for n in range(4):
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[1:4], labels[4:6], labels[6], labels[7] = 1, 2, 3, 4
        nib.save(nib.Nifti1Image(labels, np.eye(4)), references / f"case{n}.nii.gz")
        labels[:, : 2 * n] = 0
        nib.save(nib.Nifti1Image(labels, np.eye(4)), predictions / f"case{n}.nii.gz")
    return predictions, references


def record(case: int, pancreas: float) -> str:
    confidence = {"liver": 0.99 - case / 1000, "kidneys": 0.97 + case / 1000, "spleen": None, "pancreas": pancreas}
    return json.dumps({"case": f"case{case}", "status": "done", "model": "fast", "confidence": confidence}) + "\n"


def test_scans_below_the_limit_are_counted_apart(scored: tuple[pathlib.Path, pathlib.Path]) -> None:
    """The log of the whole run and those of its shards are read alike."""
    predictions, references = scored
    limit = CHECK_BELOW["fast"][Organ.PANCREAS]
    (predictions / "run_log.jsonl").write_text(record(0, limit + 0.02) + record(1, limit + 0.01))
    (predictions / "run_log-0-of-2.jsonl").write_text(record(2, limit - 0.1))
    (predictions / "run_log-1-of-2.jsonl").write_text(record(3, limit - 0.2) + '{"case": "cut sho')
    out = predictions.parent / "report"
    result = CliRunner().invoke(main, ["confidence", str(predictions), str(references), "--out", str(out)])
    assert result.exit_code == 0, result.output
    dice = [2 * right / (right + 8) for right in (8, 6, 4, 2)]
    row = f"| pancreas | 4 | 1.00 | {limit} | 2, {np.mean(dice[2:]):.3f} | 2, {np.mean(dice[:2]):.3f} |"
    assert row in result.output
    assert "| liver | 4 | 1.00 | no flag | 0 | 4, " in result.output
    assert f"| kidneys | 4 | -1.00 | {CHECK_BELOW['fast'][Organ.KIDNEYS]} | 0 | 4, " in result.output
    assert "| spleen" not in result.output
    assert (out / "confidence.md").read_text() in result.output
    assert (out / "confidence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (None, "no readable run_log.jsonl there; run python -m app into this folder"),
        ('{"case": "case0", "status": "done"}\n', "the run log has no confidence; segment the scans again"),
        (
            '{"case": "x", "model": "fast", "confidence": {"liver": 0.9}}\n',
            "the run log has none of the scored cases: x, not case0, case1, case2, case3",
        ),
    ],
)
def test_without_a_log_that_tells_it_says_what_to_do(
    scored: tuple[pathlib.Path, pathlib.Path], log: str | None, line: str
) -> None:
    predictions, references = scored
    if log:
        (predictions / "run_log.jsonl").write_text(log)
    arguments = ["confidence", str(predictions), str(references), "--out", str(predictions / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"{predictions}: {line}" in result.output


def test_a_case_that_has_the_whole_name_of_its_scan(
    scored: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """As a plain .nii has in the log."""
    lines = [record(n, 0.9 - n / 100).replace(f"case{n}", f"case{n}.nii") for n in range(4)]
    (scored[0] / "run_log.jsonl").write_text("".join(lines))
    result = CliRunner().invoke(main, ["confidence", *map(str, scored), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert "| all | 12 |" in result.output
