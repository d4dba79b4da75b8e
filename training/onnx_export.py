"""A trained network as an ONNX file: for TensorRT, a browser, or a service of one's own."""

from __future__ import annotations

import io
import json
import pathlib
import warnings
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from app.checkpoint import ModelConfig
from app.network import fold_batch_norm
from app.whole_file import whole_file
from training.weights import TrainingError, trained_network

OPSET = 17  # of 2022: TensorRT 8.6, onnxruntime-web and OpenVINO know it
TRACED = 1, 96, 160  # batch, height and width with which the network is traced; none of them stays in the file
CHECKED = (1, 32, 32), (2, 224, 96), (3, 96, 352)  # odd multiples of 32, so that every level of the network is odd once
TOLERANCE = 1e-4


class RefinedLogits(nn.Module):
    """The network with its answer alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) in 0..1 -> refined logits (N, K, H / 4, W / 4)."""
        logits: Tensor = self.network(image).refined
        return logits


def export_onnx(source: str, path: pathlib.Path) -> float:
    """Write the network of a run or a bundled model as ONNX, in float32 with batch norm folded.

    Its input `image` is (batch, channels, height, width), float32 in 0..1, height and width multiples of 32; its output
    `logits` is (batch, labels, height / 4, width / 4). The model's configuration is in the metadata: `config`, in JSON.

    Args:
        source: the folder of a run, whose averaged weights are taken, or a bundled model's name.
        path: of the file.

    Returns:
        By how much ONNX Runtime's logits differ from torch's, at most, see `largest_difference`.

    Raises:
        TrainingError: there is no such run or model, or ONNX Runtime computes something else.
        CheckpointError: the bundled model is damaged.
        OSError: the file cannot be written.
    """
    config, network = trained_network(source)
    network = RefinedLogits(fold_batch_norm(network)).eval()
    model = traced(network, config)
    difference = largest_difference(network, model, config.channels_in)
    if not difference <= TOLERANCE:
        raise TrainingError(f"{source}: ONNX Runtime's logits differ from torch's by {difference:.1e}; nothing written")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        stream.write(model)
    return difference


def traced(network: nn.Module, config: ModelConfig) -> bytes:
    """The network as an ONNX model whose batch, height and width are free."""
    stream = io.BytesIO()
    batch, height, width = TRACED
    with warnings.catch_warnings():
        # The exporter by tracing, which needs no further library, is deprecated; and it tells of branches on shapes,
        # which go the same way for every size.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(batch, config.channels_in, height, width),),
            stream,  # type: ignore[arg-type]  # only the newer exporter wants a path
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={
                "image": {0: "batch", 2: "height", 3: "width"},
                "logits": {0: "batch", 2: "height / 4", 3: "width / 4"},
            },
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(stream.getvalue())
    onnx.helper.set_model_props(model, {"config": json.dumps(asdict(config))})
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


@torch.no_grad()
def largest_difference(network: nn.Module, model: bytes, channels_in: int) -> float:
    """Between the logits of torch and those of ONNX Runtime, over several sizes; a share of the largest if over 1."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in CHECKED:
        image = torch.rand(batch, channels_in, height, width, generator=generator)
        (logits,) = session.run(None, {"image": image.numpy()})
        expected = network(image).numpy()
        differences.append(float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max())))
    return max(differences)
