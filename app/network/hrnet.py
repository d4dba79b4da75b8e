"""HRNetV2: a backbone that keeps a high-resolution branch from the first stage to the last.

Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020
(arXiv:1908.07919), figure 3 and table 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..architecture import (
    BLOCKS_PER_BRANCH,
    MODULES_PER_STAGE,
    NORM_EPSILON,
    STAGE1_BLOCKS,
    STAGE1_WIDTH,
    STEM_WIDTH,
    branch_widths,
)


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Resize feature maps bilinearly, pixel centres aligned as in the reference (align_corners False).

    Args:
        features: (N, C, H, W), any float dtype.
        size: the wanted (H, W).
    """
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


class Conv(nn.Conv2d):
    """A convolution whose weights are not set: they come from a file, or from `he_initialise`.

    torch would draw some of its own, which takes time at every start.
    """

    def reset_parameters(self) -> None:
        """Leave them as they are."""


def he_initialise(network: nn.Module) -> None:
    """Initialise every convolution's weights (normal, fan-out), biases zero.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    for module in network.modules():
        if isinstance(module, Conv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and a ReLU unless `activate` is False."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        self.conv = Conv(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out, NORM_EPSILON)
        self.activation: nn.Module = nn.ReLU(inplace=True) if activate else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.norm(self.conv(features)))
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 residual block with expansion 4 (stage 1)."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels_in, width)
        self.conv = ConvNorm(width, width, kernel=3)
        self.expand = ConvNorm(width, 4 * width, activate=False)
        self.shortcut: nn.Module = (
            nn.Identity() if channels_in == 4 * width else ConvNorm(channels_in, 4 * width, activate=False)
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.expand(self.conv(self.reduce(features)))
        activated: Tensor = self.activation(residual.add_(self.shortcut(features)))
        return activated


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection (stages 2 to 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width, kernel=3)
        self.conv2 = ConvNorm(width, width, kernel=3, activate=False)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.conv2(self.conv1(features))
        activated: Tensor = self.activation(residual.add_(features))
        return activated


class Fuse(nn.Module):
    """One output of a module's fusion: the sum of every branch, brought to this branch's resolution and width.

    Finer branches come down by strided 3x3 convolutions, coarser ones up by a 1x1 convolution and bilinear resizing.
    """

    def __init__(self, widths: Sequence[int], target: int) -> None:
        super().__init__()
        self.target = target
        paths: list[nn.Module] = []
        for source, width in enumerate(widths):
            if source == target:
                paths.append(nn.Identity())
            elif source > target:
                paths.append(ConvNorm(width, widths[target], activate=False))
            else:
                steps = [ConvNorm(width, width, kernel=3, stride=2) for _ in range(target - source - 1)]
                paths.append(nn.Sequential(*steps, ConvNorm(width, widths[target], 3, stride=2, activate=False)))
        self.paths = nn.ModuleList(paths)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        size = branches[self.target].shape[2:]
        total = resize(self.paths[0](branches[0]), size)
        for path, branch in zip(list(self.paths)[1:], branches[1:], strict=True):
            total = total + resize(path(branch), size)
        activated: Tensor = self.activation(total)
        return activated


class HrModule(nn.Module):
    """Parallel branches of four basic blocks each, then a fusion in which every branch sees every other."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(BLOCKS_PER_BRANCH))) for width in widths
        )
        self.fuse = nn.ModuleList(Fuse(widths, target) for target in range(len(widths)))

    def forward(self, branches: Sequence[Tensor]) -> list[Tensor]:
        features = [blocks(branch) for blocks, branch in zip(self.branches, branches, strict=True)]
        return [fuse(features) for fuse in self.fuse]


class Stage(nn.Module):
    """A transition that opens one more, coarser branch, then a chain of modules."""

    def __init__(self, widths_in: Sequence[int], widths: Sequence[int], modules: int) -> None:
        super().__init__()
        keep: list[nn.Module] = [
            nn.Identity() if before == after else ConvNorm(before, after, kernel=3)
            for before, after in zip(widths_in, widths, strict=False)
        ]
        self.keep = nn.ModuleList(keep)
        self.open = ConvNorm(widths_in[-1], widths[-1], kernel=3, stride=2)
        self.fusion_modules = nn.ModuleList(HrModule(widths) for _ in range(modules))

    def forward(self, branches: Sequence[Tensor]) -> list[Tensor]:
        features = [keep(branch) for keep, branch in zip(self.keep, branches, strict=True)]
        features.append(self.open(branches[-1]))
        for module in self.fusion_modules:
            features = module(features)
        return features


class Hrnet(nn.Module):
    """HRNetV2 of any width.

    Args:
        width: channels of the finest branch; the others have 2, 4 and 8 times as many. 48 in the paper.
        channels_in: channels of the input image.
    """

    def __init__(self, width: int = 48, channels_in: int = 3) -> None:
        super().__init__()
        widths = branch_widths(width)
        self.channels_out = sum(widths)
        self.stem = nn.Sequential(
            ConvNorm(channels_in, STEM_WIDTH, kernel=3, stride=2), ConvNorm(STEM_WIDTH, STEM_WIDTH, kernel=3, stride=2)
        )
        self.stage1 = nn.Sequential(
            *(Bottleneck(STEM_WIDTH if i == 0 else STAGE1_WIDTH, STAGE1_WIDTH // 4) for i in range(STAGE1_BLOCKS))
        )
        self.stage2 = Stage([STAGE1_WIDTH], widths[:2], MODULES_PER_STAGE[0])
        self.stage3 = Stage(widths[:2], widths[:3], MODULES_PER_STAGE[1])
        self.stage4 = Stage(widths[:3], widths, MODULES_PER_STAGE[2])

    def forward(self, image: Tensor) -> Tensor:
        """Features of an image: (N, channels_in, H, W) -> (N, channels_out, ceil(H / 4), ceil(W / 4))."""
        branches = self.stage4(self.stage3(self.stage2([self.stage1(self.stem(image))])))
        size = branches[0].shape[2:]
        return torch.cat([resize(branch, size) for branch in branches], dim=1)
