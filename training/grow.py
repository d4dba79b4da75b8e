"""Grow a trained network into a wider one that computes the same logits, as a start for training the wider one.

Source: Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016. Instead of
copying channels, new ones are drawn by He initialisation, and the old ones read them with weight 0: training can use
them from its first step, and no noise is needed to tell copies apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from app.checkpoint import ModelConfig

STEM = "backbone.stem.0.conv.weight"
QUERY = "ocr_head.attention.query.1.norm"
# A new query channel must not change the attention, and must be able to learn. After its ReLU it can't be 0, where no
# gradient passes, so its batch norm gives this constant.
SILENT_QUERY = 1e-12


def grown_weights(
    small: Mapping[str, Tensor], source: ModelConfig, large: nn.Module, target: ModelConfig
) -> dict[str, Tensor]:
    """Weights for a wider network with which it computes what a narrower one does.

    The logits agree to rounding where all input channels hold the same slice. Where the wider network has fewer input
    channels, each outer slice is replaced by the nearest one that is kept.

    Args:
        small: state dict of the trained network.
        source: its configuration.
        large: the wider network, He-initialised; it is left as it is.
        target: its configuration.

    Returns:
        A state dict for `large`.

    Raises:
        ValueError: the wider network is narrower somewhere.
    """
    for name in ("width", "ocr_channels", "key_channels", "classes"):
        if getattr(target, name) < getattr(source, name):
            raise ValueError(f"{name} cannot shrink from {getattr(source, name)} to {getattr(target, name)}")
    grown = {key: value.clone() for key, value in large.state_dict().items()}
    for key, old in small.items():
        new = grown[key]
        if key == STEM:
            grown[key] = fit_input_channels(old, target.channels_in)
        elif old.ndim == 4:
            new[: len(old)] = 0
            new[: len(old), _old_inputs(key, old.shape[1], source, target)] = old
        elif old.ndim == 1:
            new[: len(old)] = old
    # The attention divides by the root of its channels, and the new ones add nothing.
    grown[f"{QUERY}.weight"] *= (target.key_channels / source.key_channels) ** 0.5
    grown[f"{QUERY}.bias"] *= (target.key_channels / source.key_channels) ** 0.5
    grown[f"{QUERY}.weight"][source.key_channels :] = 0
    grown[f"{QUERY}.bias"][source.key_channels :] = SILENT_QUERY
    return grown


def _old_inputs(key: str, channels: int, source: ModelConfig, target: ModelConfig) -> list[int]:
    """Where a convolution of the wider network finds the narrower one's input channels, in their order."""
    if key in ("fcn_head.hidden.conv.weight", "ocr_head.pixels.conv.weight"):  # the four branches, concatenated
        starts, sizes = [(2**i - 1) * target.width for i in range(4)], [2**i * source.width for i in range(4)]
    elif key == "ocr_head.combine.conv.weight":  # context and pixel features, concatenated
        starts, sizes = [0, target.ocr_channels], [source.ocr_channels] * 2
    else:
        starts, sizes = [0], [channels]
    return [start + i for start, size in zip(starts, sizes, strict=True) for i in range(size)]


def fit_input_channels(stem: Tensor, channels: int) -> Tensor:
    """The first convolution's weights (N, C, 3, 3) for another number of input channels, odd.

    Outer slices that are added weigh 0; the weights of those that are dropped go to the nearest slice that is kept.
    """
    added = (channels - stem.shape[1]) // 2
    if added >= 0:
        return nn.functional.pad(stem, (0, 0, 0, 0, added, added))
    kept = stem[:, -added:added].clone()
    kept[:, 0] += stem[:, :-added].sum(1)
    kept[:, -1] += stem[:, added:].sum(1)
    return kept
