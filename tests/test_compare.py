"""The comparison with other networks: they answer as ours does, and are trained and scored by the same code."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from app.organs import Organ
from app.segmenter import Segmenter
from tests.tiny import TINY, tiny
from training import compare
from training.__main__ import main
from training.cache import find_pairs
from training.compare import GRID, Row, count_flops, markdown, mean_dice
from training.export import export
from training.folds import FOLDS
from training.other_networks import DECODERS, ENCODERS, other_network
from training.weights import TrainingError, build_network


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_other_networks_answer_as_ours(encoder: str, decoder: str) -> None:
    network = other_network(f"{encoder}-{decoder}", channels_in=7)
    with torch.no_grad():
        logits = network(torch.rand(2, 7, 96, 64))
    assert logits.refined.shape == logits.coarse.shape == (2, len(Organ), 24, 16)
    assert {module.momentum for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.1}


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"no network .vgg-fcn.; there are resnet50, efficientnet-b3, each"):
        other_network("vgg-fcn", 3)


def test_the_grid_has_the_papers_network_and_trains_all_alike() -> None:
    with torch.device("meta"):
        network = build_network(GRID["hrnet48-ocr"])
    assert sum(p.numel() for p in network.parameters()) == 70_354_170 + 64 * 9 * (
        GRID["hrnet48-ocr"].model.channels_in - 3
    )
    settings = [
        replace(
            recipe,
            model=replace(recipe.model, width=0, ocr_channels=0, key_channels=0),
            loss=replace(recipe.loss, coarse_weight=0),
            architecture="",
        )
        for recipe in GRID.values()
    ]
    assert all(one == settings[0] for one in settings)


def test_flops_by_hand() -> None:
    network = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert count_flops(network, 3, torch.device("cpu")) == 2 * 3 * 4 * 9 * compare.SIDE**2


def test_a_comparison_trains_scores_and_prints(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny(architecture="efficientnet-b3-fcn", coarse_weight=0.0)
    monkeypatch.setattr(compare, "GRID", {"tiny": TINY, other.architecture: other})
    monkeypatch.setattr(compare, "BASE", TINY)
    folders = ["--data", str(data), "--cache", str(tmp_path / "cache")]
    arguments = ["compare", str(tmp_path / "out"), *folders, "--minutes", "0.01", "--hold-out", "two"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| tiny", "| efficientnet-b3-fcn"]
    assert result.output.endswith("\n".join(lines) + "\n")
    with pytest.raises(TrainingError, match="a run of efficientnet-b3-fcn; the container runs hrnet-ocr only"):
        export(tmp_path / "out" / other.architecture, "mine", "1", "phantoms", tmp_path)


def test_scores_leave_out_what_nobody_annotated(data: pathlib.Path) -> None:
    """A segmenter that knows the labels and calls unannotated voxels liver scores 1."""

    class Oracle(Segmenter):
        def __init__(self) -> None:
            pass

        def segment(self, path: object) -> np.ndarray:
            name = pathlib.Path(str(path)).name.replace("_0000", "")
            labels = np.asarray(nib.load(data / "labelsTr" / name).dataobj)
            return np.where(labels == 255, Organ.LIVER, labels).astype(np.uint8)

    assert set(mean_dice(Oracle(), find_pairs(data)).values()) == {1.0}


def test_the_table() -> None:
    row = Row("net", 12_070_000, 105.6, 40.4, 300, dict.fromkeys(Organ, 0.5))
    assert markdown([row]).splitlines()[2] == "| net | 12.07 | 105.6 | 40 | 300 | 0.500 | 0.500 | 0.500 | 0.500 |"


def test_the_folds_hold_out_every_btcv_case_once(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert len({case for fold in FOLDS for case in fold}) == 15
    assert {len(fold) for fold in FOLDS} == {3}
    arguments = ["train", "fast", str(tmp_path), "--data", str(data), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(main, [*arguments, "--fold", "0"])
    assert "held-out case btcv_0009 is in none of the data folders" in result.output
    result = CliRunner().invoke(main, [*arguments, "--hold-out", "one", "--hold-out", "two"])
    assert "every case is held out" in result.output
    result = CliRunner().invoke(main, [*arguments, "--sampling-weight", "btcv"])
    assert result.exit_code == 2
    assert "--sampling-weight btcv: expected PREFIX=WEIGHT" in result.output
