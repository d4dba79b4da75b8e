"""The network as an OpenVINO graph, made from a checkpoint's folded tensors. Read it beside `network/`: same names.

Shapes: N images, C channels, H x W a resolution, K labels, P = H * W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from ..architecture import (
    BLOCKS_PER_BRANCH,
    MODULES_PER_STAGE,
    STAGE1_BLOCKS,
)

Node = Any  # of a graph, or one of its outputs: OpenVINO's functions take both


def network_graph(tensors: Mapping[str, NDArray[np.float32]], channels_in: int) -> ov.Model:
    """A graph from images (N, channels_in, H, W), H and W multiples of 32, to refined logits (N, K, H / 4, W / 4).

    Args:
        tensors: of the checkpoint, batch norm folded; see `folded`. They are not copied.
        channels_in: input channels.
    """
    image = ops.parameter(ov.PartialShape([-1, channels_in, -1, -1]), np.float32, "image")
    graph = _Graph(tensors)
    features = graph.backbone(image)
    return ov.Model([graph.ocr_head(features, graph.fcn_head(features))], [image], "hrnet-ocr")


class _Graph:
    """Adds layers by their names among the tensors."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self.tensors = tensors

    def has(self, layer: str) -> bool:
        return f"{layer}.conv.weight" in self.tensors

    def conv(self, name: str, features: Node) -> Node:
        """A convolution with bias, at stride 1."""
        return self._conv(name, features, 1)

    def _conv(self, name: str, features: Node, stride: int) -> Node:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        pad = [side // 2 for side in weight.shape[2:]]
        result = ops.convolution(
            features, ops.constant(weight, shared_memory=True), [stride, stride], pad, pad, dilations=[1, 1]
        )
        return ops.add(result, ops.constant(bias.reshape(1, -1, 1, 1)))

    def conv_norm(self, name: str, features: Node, stride: int = 1, activate: bool = True) -> Node:
        """`ConvNorm`, folded."""
        result = self._conv(f"{name}.conv", features, stride)
        return ops.relu(result) if activate else result

    def bottleneck(self, name: str, features: Node) -> Node:
        """`Bottleneck`."""
        narrow = self.conv_norm(f"{name}.conv", self.conv_norm(f"{name}.reduce", features))
        residual = self.conv_norm(f"{name}.expand", narrow, activate=False)
        shortcut = f"{name}.shortcut"
        if self.has(shortcut):
            features = self.conv_norm(shortcut, features, activate=False)
        return ops.relu(ops.add(residual, features))

    def basic_block(self, name: str, features: Node) -> Node:
        """`BasicBlock`."""
        residual = self.conv_norm(f"{name}.conv2", self.conv_norm(f"{name}.conv1", features), activate=False)
        return ops.relu(ops.add(residual, features))

    def fuse(self, name: str, branches: Sequence[Node], target: int) -> Node:
        """`Fuse`."""
        total = None
        for source, branch in enumerate(branches):
            path = f"{name}.paths.{source}"
            if source > target:
                branch = enlarge(self.conv_norm(path, branch, activate=False), 2 ** (source - target))
            for step in range(target - source):
                branch = self.conv_norm(f"{path}.{step}", branch, 2, activate=step < target - source - 1)
            total = branch if total is None else ops.add(total, branch)
        return ops.relu(total)

    def module(self, name: str, branches: Sequence[Node]) -> list[Node]:
        """`HrModule`."""
        features = list(branches)
        for i in range(len(features)):
            for block in range(BLOCKS_PER_BRANCH):
                features[i] = self.basic_block(f"{name}.branches.{i}.{block}", features[i])
        return [self.fuse(f"{name}.fuse.{target}", features, target) for target in range(len(features))]

    def stage(self, name: str, branches: Sequence[Node], modules: int) -> list[Node]:
        """`Stage`."""
        features = [
            self.conv_norm(f"{name}.keep.{i}", branch) if self.has(f"{name}.keep.{i}") else branch
            for i, branch in enumerate(branches)
        ]
        features.append(self.conv_norm(f"{name}.open", branches[-1], 2))
        for module in range(modules):
            features = self.module(f"{name}.fusion_modules.{module}", features)
        return features

    def backbone(self, image: Node) -> Node:
        """`Hrnet`: the four branches at the finest one's resolution, concatenated."""
        features = self.conv_norm("backbone.stem.1", self.conv_norm("backbone.stem.0", image, 2), 2)
        for block in range(STAGE1_BLOCKS):
            features = self.bottleneck(f"backbone.stage1.{block}", features)
        branches = [features]
        for i, modules in enumerate(MODULES_PER_STAGE):
            branches = self.stage(f"backbone.stage{i + 2}", branches, modules)
        return ops.concat([enlarge(branch, 2**i) for i, branch in enumerate(branches)], 1)

    def fcn_head(self, features: Node) -> Node:
        """`FcnHead`: coarse logits (N, K, H, W)."""
        return self.conv("fcn_head.classify", self.conv_norm("fcn_head.hidden", features))

    def object_regions(self, features: Node, coarse_logits: Node) -> Node:
        """`gather_object_regions`, as a column of pixels: (N, C, K, 1)."""
        regions = ops.softmax(pixels_last(coarse_logits), 2)  # (N, K, P)
        gathered = ops.matmul(pixels_last(features), regions, False, True)  # (N, C, K)
        return ops.unsqueeze(gathered, [3])

    def attention(self, name: str, features: Node, regions: Node) -> Node:
        """`ObjectAttention`; pixels stay the last axis throughout, which spares transposing them."""
        query = self.conv_norm(f"{name}.query.1", self.conv_norm(f"{name}.query.0", features))
        key = self.conv_norm(f"{name}.key.1", self.conv_norm(f"{name}.key.0", regions))
        value = self.conv_norm(f"{name}.value", regions)
        scale = len(self.tensors[f"{name}.query.1.conv.weight"]) ** -0.5
        key = ops.multiply(ops.squeeze(key, [3]), ops.constant(np.float32(scale)))  # (N, key channels, K)
        similarity = ops.softmax(ops.matmul(key, pixels_last(query), True, False), 1)  # (N, K, P)
        context = ops.matmul(ops.squeeze(value, [3]), similarity, False, False)  # (N, key channels, P)
        return self.conv_norm(f"{name}.out", ops.reshape(context, ops.shape_of(query), False))

    def ocr_head(self, features: Node, coarse_logits: Node) -> Node:
        """`OcrHead`: refined logits (N, K, H, W)."""
        pixels = self.conv_norm("ocr_head.pixels", features)
        context = self.attention("ocr_head.attention", pixels, self.object_regions(pixels, coarse_logits))
        combined = self.conv_norm("ocr_head.combine", ops.concat([context, pixels], 1))
        return self.conv("ocr_head.classify", combined)


def enlarge(features: Node, factor: int) -> Node:
    """`resize` by a whole factor: bilinear, align_corners False."""
    if factor == 1:
        return features
    return ops.interpolate(
        features,
        np.array([factor, factor], np.float32),
        "linear_onnx",
        "scales",
        coordinate_transformation_mode="half_pixel",
        axes=np.array([2, 3], np.int32),
    )


def pixels_last(features: Node) -> Node:
    """(N, C, H, W) -> (N, C, P)."""
    return ops.reshape(features, np.array([0, 0, -1], np.int64), True)
