"""The network's dimensions without the network: what a checkpoint must hold, and what every engine builds.

Sources: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020
(arXiv:1908.07919), figure 3 and table 1; Yuan et al., "Object-Contextual Representations for Semantic Segmentation",
ECCV 2020 (arXiv:1909.11065).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

STEM_WIDTH = 64
STAGE1_WIDTH = 256  # four bottlenecks of 64, expansion 4
STAGE1_BLOCKS = 4
MODULES_PER_STAGE = (1, 4, 3)  # stages 2, 3 and 4
BLOCKS_PER_BRANCH = 4
NORM_EPSILON = 1e-5  # added to the variance in batch norm, torch's default

Shape = tuple[int, ...]
Layer = tuple[str, int, int, int]  # name, channels out, channels in, kernel size: a convolution and its batch norm


def branch_widths(width: int) -> list[int]:
    """Channels of the four branches, finest first."""
    return [width, 2 * width, 4 * width, 8 * width]


def tensor_shapes(width: int, classes: int, channels_in: int, ocr_channels: int, key_channels: int) -> dict[str, Shape]:
    """Names and shapes of all tensors of a network with these dimensions; see `network.HrnetOcr` for the arguments."""
    features = sum(branch_widths(width))
    shapes: dict[str, Shape] = {}
    for name, out, into, kernel in [
        *_backbone(branch_widths(width), channels_in),
        *_heads(features, ocr_channels, key_channels),
    ]:
        shapes[f"{name}.conv.weight"] = (out, into, kernel, kernel)
        shapes |= {f"{name}.norm.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    for head, channels in (("fcn_head", features), ("ocr_head", ocr_channels)):
        shapes |= {f"{head}.classify.weight": (classes, channels, 1, 1), f"{head}.classify.bias": (classes,)}
    return shapes


def _backbone(widths: Sequence[int], channels_in: int) -> Iterator[Layer]:
    yield "backbone.stem.0", STEM_WIDTH, channels_in, 3
    yield "backbone.stem.1", STEM_WIDTH, STEM_WIDTH, 3
    narrow = STAGE1_WIDTH // 4
    for i in range(STAGE1_BLOCKS):
        block, into = f"backbone.stage1.{i}", STAGE1_WIDTH if i else STEM_WIDTH
        yield f"{block}.reduce", narrow, into, 1
        yield f"{block}.conv", narrow, narrow, 3
        yield f"{block}.expand", STAGE1_WIDTH, narrow, 1
        if into != STAGE1_WIDTH:
            yield f"{block}.shortcut", STAGE1_WIDTH, into, 1
    before = [STAGE1_WIDTH]
    for i, modules in enumerate(MODULES_PER_STAGE):
        stage, now = f"backbone.stage{i + 2}", list(widths[: i + 2])
        for branch, (old, new) in enumerate(zip(before, now, strict=False)):
            if old != new:
                yield f"{stage}.keep.{branch}", new, old, 3
        yield f"{stage}.open", now[-1], before[-1], 3
        for module in range(modules):
            yield from _module(f"{stage}.fusion_modules.{module}", now)
        before = now


def _module(name: str, widths: Sequence[int]) -> Iterator[Layer]:
    for branch, width in enumerate(widths):
        for block in range(BLOCKS_PER_BRANCH):
            yield f"{name}.branches.{branch}.{block}.conv1", width, width, 3
            yield f"{name}.branches.{branch}.{block}.conv2", width, width, 3
    for target, out in enumerate(widths):
        for source, width in enumerate(widths):
            path = f"{name}.fuse.{target}.paths.{source}"
            if source > target:
                yield path, out, width, 1
            for step in range(target - source):
                yield f"{path}.{step}", out if step == target - source - 1 else width, width, 3


def _heads(features: int, channels: int, keys: int) -> Iterator[Layer]:
    yield "fcn_head.hidden", features, features, 1
    yield "ocr_head.pixels", channels, features, 3
    for part in ("query", "key"):
        yield f"ocr_head.attention.{part}.0", keys, channels, 1
        yield f"ocr_head.attention.{part}.1", keys, keys, 1
    yield "ocr_head.attention.value", keys, channels, 1
    yield "ocr_head.attention.out", channels, keys, 1
    yield "ocr_head.combine", channels, 2 * channels, 1
