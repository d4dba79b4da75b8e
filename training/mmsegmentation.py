"""Weights of a public mmsegmentation `ocrnet_hr*` checkpoint, under our network's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from app.errors import CheckpointError

# mmsegmentation's names -> ours, applied in this order until one matches the whole name's start.
_MMSEGMENTATION: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"backbone\.(conv|bn)([12])\.", lambda m: f"backbone.stem.{int(m[2]) - 1}.{_part(m[1])}."),
    (
        r"backbone\.layer1\.(\d)\.(conv|bn)([123])\.",
        lambda m: f"backbone.stage1.{m[1]}.{('reduce', 'conv', 'expand')[int(m[3]) - 1]}.{_part(m[2])}.",
    ),
    (r"backbone\.layer1\.(\d)\.downsample\.([01])\.", lambda m: f"backbone.stage1.{m[1]}.shortcut.{_part(m[2])}."),
    (
        r"backbone\.transition(\d)\.(\d)\.([01])\.(?!\d)",
        lambda m: f"backbone.stage{int(m[1]) + 1}.keep.{m[2]}.{_part(m[3])}.",
    ),
    (r"backbone\.transition(\d)\.\d\.0\.([01])\.", lambda m: f"backbone.stage{int(m[1]) + 1}.open.{_part(m[2])}."),
    (
        r"backbone\.stage(\d)\.(\d)\.branches\.(\d\.\d)\.(conv|bn)([12])\.",
        lambda m: f"backbone.stage{m[1]}.fusion_modules.{m[2]}.branches.{m[3]}.conv{m[5]}.{_part(m[4])}.",
    ),
    (
        r"backbone\.stage(\d)\.(\d)\.fuse_layers\.(\d)\.(\d(?:\.\d)?)\.([01])\.(?!\d)",
        lambda m: f"backbone.stage{m[1]}.fusion_modules.{m[2]}.fuse.{m[3]}.paths.{m[4]}.{_part(m[5])}.",
    ),
    (r"decode_head\.0\.convs\.0\.(conv|bn)\.", lambda m: f"fcn_head.hidden.{_part(m[1])}."),
    (r"decode_head\.0\.conv_seg\.", lambda m: "fcn_head.classify."),
    (r"decode_head\.1\.bottleneck\.(conv|bn)\.", lambda m: f"ocr_head.pixels.{_part(m[1])}."),
    (
        r"decode_head\.1\.object_context_block\.(query|key)_project\.([01])\.(conv|bn)\.",
        lambda m: f"ocr_head.attention.{m[1]}.{m[2]}.{_part(m[3])}.",
    ),
    (
        r"decode_head\.1\.object_context_block\.(value|out)_project\.(conv|bn)\.",
        lambda m: f"ocr_head.attention.{m[1]}.{_part(m[2])}.",
    ),
    (
        r"decode_head\.1\.object_context_block\.bottleneck\.(conv|bn)\.",
        lambda m: f"ocr_head.combine.{_part(m[1])}.",
    ),
    (r"decode_head\.1\.conv_seg\.", lambda m: "ocr_head.classify."),
)


def _part(name: str) -> str:
    """Conv and 0 are a ConvNorm's convolution, bn and 1 its batch norm."""
    return "conv" if name in ("conv", "0") else "norm"


def from_mmsegmentation(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the state dict of a public mmsegmentation `ocrnet_hr*` checkpoint to `HrnetOcr`'s names.

    Args:
        state_dict: as stored, or the whole checkpoint with its `state_dict` entry.

    Returns:
        A dict for `HrnetOcr.load_state_dict`; as many classes as the checkpoint has.

    Raises:
        CheckpointError: a name is not one of that network's.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.get("state_dict", state_dict).items():
        for pattern, ours in _MMSEGMENTATION:
            match = re.match(pattern, name)
            if match:
                renamed[ours(match) + name[match.end() :]] = tensor
                break
        else:
            raise CheckpointError(f"tensor '{name}' is not part of mmsegmentation's HRNet + OCR; expected ocrnet_hr*")
    return renamed
