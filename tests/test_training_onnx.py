"""Export as ONNX: ONNX Runtime computes what torch does, for sizes and batches that were not traced."""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from app.checkpoint import ModelConfig
from tests.tiny import TINY, randomise
from training import onnx_export
from training.__main__ import main
from training.state import RunState
from training.weights import build_network


@pytest.fixture
def run(tmp_path: pathlib.Path) -> RunState:
    """A run whose averaged weights are not those of its network."""
    state = RunState(tmp_path / "run", TINY, torch.device("cpu"))
    randomise(state.average.module, seed=5)
    state.save()
    return state


def test_a_runs_averaged_weights_as_onnx(run: RunState) -> None:
    path = run.folder.parent / "deep" / "tiny.onnx"
    result = CliRunner().invoke(main, ["export", str(run.folder), "--onnx", str(path)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{path}: ONNX Runtime's logits differ from torch's by ")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((1, 32, 160), (5, 288, 32), (2, 64, 128)):
        image = torch.rand(size[0], TINY.model.channels_in, *size[1:], generator=torch.Generator().manual_seed(1))
        (logits,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            expected = run.average.module.eval()(image).refined.numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    (config,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == "config")
    assert json.loads(config) == json.loads(json.dumps(asdict(TINY.model)))


def test_a_bundled_model_as_onnx(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are far from 0, and may differ by more."""
    network = randomise(build_network(TINY), seed=3)
    dict(network.named_parameters())["ocr_head.classify.weight"].data *= 1e5
    monkeypatch.setattr("training.weights.bundled_models", lambda: ["start"])
    monkeypatch.setattr("training.weights.bundled_weights", lambda name: (TINY.model, network.state_dict()))
    path = tmp_path / "start.onnx"
    result = CliRunner().invoke(main, ["export", "start", "--onnx", str(path)])
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.rand(1, TINY.model.channels_in, 96, 96)
    with torch.no_grad():
        expected = network(image).refined.numpy()
    largest = np.abs(expected).max()
    assert largest > 1e3
    np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, atol=1e-4 * largest)


def test_a_file_that_computes_something_else_is_not_written(run: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = onnx_export.traced

    def other(network: nn.Module, config: ModelConfig) -> bytes:
        changed = onnx_export.RefinedLogits(randomise(build_network(TINY), seed=6))
        return plain(changed, config)

    monkeypatch.setattr(onnx_export, "traced", other)
    path = run.folder / "tiny.onnx"
    result = CliRunner().invoke(main, ["export", str(run.folder), "--onnx", str(path)])
    assert result.exit_code == 1
    assert "ONNX Runtime's logits differ from torch's by" in result.output
    assert result.output.endswith("nothing written\n")
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "status", "line"),
    [
        (["nowhere", "--onnx", "x.onnx"], 1, "error: nowhere/last.pt: no checkpoint there; train there first, or name"),
        (["fast", "--onnx", "x.onnx", "--name", "mine"], 2, "--onnx takes the run or model as it is"),
        (["fast", "--name", "mine"], 2, "expected --name, --version and --trained-on"),
    ],
)
def test_what_cannot_be_exported_is_named(options: list[str], status: int, line: str) -> None:
    result = CliRunner().invoke(main, ["export", *options])
    assert result.exit_code == status
    assert line in result.output
