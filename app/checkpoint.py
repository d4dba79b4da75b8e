"""A model on disk: one safetensors file NAME.safetensors, read and written without torch.

Tensors have the names of `network.HrnetOcr`'s state dict. A convolution's weights `X.weight` are int8, with one float32
scale per output channel in `X.weight_scale`: weight = int8 * scale. Batch norm and biases are float32. Convolution
weights may also be fp16 without a scale, as in format 1. The metadata has `format`, and `config`: a `ModelConfig` in
JSON.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .architecture import NORM_EPSILON, tensor_shapes
from .errors import CheckpointError
from .organs import Organ
from .whole_file import whole_file

HERE = pathlib.Path(__file__).resolve().parent
# Installed, the weights lie inside the package; in the source tree and in the image, beside it.
WEIGHTS_DIR = next((d for d in (HERE / "weights", HERE.parent / "weights") if d.is_dir()), HERE / "weights")
MANIFEST = "SHA256SUMS"  # readable by `sha256sum --check`
FORMAT, FORMAT_1 = "hrnet-ocr/2", "hrnet-ocr/1"
LABELS_1 = ("background", "liver", "kidneys", "spleen", "pancreas")  # of every model of format 1
SCALE = "_scale"  # the end of the name of an int8 tensor's scales
LARGEST_INT8 = 127  # -128 is not used, so that the range is symmetric

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ModelConfig:
    """What a network needs to be rebuilt and fed as in training.

    Attributes:
        name: of the model, such as `fast`.
        version: of the weights.
        width: backbone width.
        labels: what the channels of the logits mean, in their order: background, then organs in lower case.
        channels_in: input channels, odd: the slice in the middle, its neighbours on either side.
        ocr_channels: width of the OCR head.
        key_channels: width of its attention.
        window_hu: Hounsfield window of the input.
        spacing_mm: in-plane spacing of the network's grid; None: the scan's own pixels, or 1 mm where those are larger.
        neighbour_mm: distance of the slices in neighbouring channels; None: the slice in all of them.
        training_data: what it was trained on, in words.
    """

    name: str
    version: str
    width: int
    labels: tuple[str, ...]
    channels_in: int
    ocr_channels: int
    key_channels: int
    window_hu: tuple[float, float]
    spacing_mm: float | None
    neighbour_mm: float | None
    training_data: str

    @property
    def classes(self) -> int:
        """Channels of the logits, background included."""
        return len(self.labels)

    @property
    def organs(self) -> tuple[Organ, ...]:
        """What the channels of the logits mean, as values of a mask."""
        return tuple(Organ[label.upper()] for label in self.labels)


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory.

    Attributes:
        config: what it is.
        tensors: its weights in float32, by their names in `network.HrnetOcr`'s state dict.
        sha256: of its file, by the file's name.
    """

    config: ModelConfig
    tensors: Tensors
    sha256: dict[str, str]


def bundled_models(folder: pathlib.Path = WEIGHTS_DIR) -> list[str]:
    """Names of the models that the folder's manifest lists."""
    manifest = folder / MANIFEST
    listed = manifest.read_text().split()[1::2] if manifest.exists() else []
    return sorted(pathlib.Path(name).stem for name in listed)


def find_model(name: str, folder: pathlib.Path = WEIGHTS_DIR) -> pathlib.Path:
    """The file of a bundled model.

    Raises:
        CheckpointError: there is no such model.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        have = ", ".join(bundled_models(folder)) or "none"
        raise CheckpointError(
            f"{folder}: no weights for model '{name}' (available: {have}); choose one of these, or --weights FILE"
        )
    return path


def load_checkpoint(path: pathlib.Path) -> Checkpoint:
    """Read a model, and check everything that can be checked.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, altered, names labels that this program does not know,
            or does not fit its own configuration.
    """
    digest = _checked_digest(path)
    config, tensors = read_file(path)
    check(path, config, tensors)
    return Checkpoint(config, tensors, {path.name: digest})


def read_file(path: pathlib.Path) -> tuple[ModelConfig, Tensors]:
    """The configuration and the tensors in a file, which may be one of several that hold a model of format 1.

    Raises:
        CheckpointError: the file is not a checkpoint of this program.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            config = _read_config(path, file.metadata() or {})
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    return config, _in_float32(path, stored)


def _checked_digest(path: pathlib.Path) -> str:
    """The file's sha256, compared with the manifest beside it where that lists the file."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: not a regular file; give a .safetensors file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = path.parent / MANIFEST
        lines = manifest.read_text().splitlines() if manifest.exists() else []
    except OSError as error:
        bundled = path.stem.lower()
        instead = f", or type --model {bundled} for the bundled one" if bundled in bundled_models() else ""
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path{instead}") from error
    listed = {name: value for value, name in (line.split(maxsplit=1) for line in lines if line.strip())}
    if listed.get(path.name, digest) != digest:
        raise CheckpointError(f"{path}: sha256 {digest[:12]}... is not the one in {MANIFEST}; copy the file again")
    return digest


def _read_config(path: pathlib.Path, metadata: Mapping[str, str]) -> ModelConfig:
    if metadata.get("format") not in (FORMAT, FORMAT_1):
        raise CheckpointError(f"{path}: not a checkpoint of this program (no '{FORMAT}' in its metadata)")
    try:
        fields: dict[str, Any] = json.loads(metadata["config"])
        if metadata["format"] == FORMAT_1:
            if fields.pop("classes") != len(LABELS_1):
                raise ValueError(f"{FORMAT_1} has {len(LABELS_1)} classes")
            fields["labels"] = LABELS_1
        if isinstance(fields["labels"], str):
            raise TypeError("labels: expected a list of names")
        sizes = [fields[name] for name in ("width", "channels_in", "ocr_channels", "key_channels")]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"widths and channels {sizes}: expected positive integers")
        fields["labels"], fields["window_hu"] = tuple(map(str, fields["labels"])), tuple(fields["window_hu"])
        return ModelConfig(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read ({error}); export it again") from error


def _in_float32(path: pathlib.Path, stored: Mapping[str, NDArray[Any]]) -> Tensors:
    """Stored tensors in float32: int8 ones times their scales."""
    tensors: Tensors = {}
    for name, tensor in stored.items():
        if name.removesuffix(SCALE) in stored and name.endswith(SCALE):
            continue
        tensors[name] = tensor.astype(np.float32)
        if tensor.dtype != np.int8:
            continue
        scale = stored.get(name + SCALE)
        if scale is None or scale.shape != tensor.shape[:1]:
            raise CheckpointError(
                f"{path}: tensor {name} is int8 with {'no scales' if scale is None else f'scales {scale.shape}'}, "
                f"expected {name}{SCALE} {tensor.shape[:1]}; export the model again"
            )
        tensors[name] *= scale.reshape(-1, *[1] * (tensor.ndim - 1))
    return tensors


def check(path: pathlib.Path, config: ModelConfig, tensors: Tensors) -> None:
    """Compare a configuration with what this program knows, and the tensors with the configuration.

    Raises:
        CheckpointError: a label or a tensor is missing, unknown, repeated, or of another shape.
    """
    _check_labels(path, config)
    _check_shapes(path, config, tensors)


def _check_labels(path: pathlib.Path, config: ModelConfig) -> None:
    known = [organ.name.lower() for organ in Organ]
    unknown = [label for label in config.labels if label not in known]
    if unknown:
        raise CheckpointError(
            f"{path}: label '{unknown[0]}' is unknown, this program has {', '.join(known)}; update the program"
        )
    if len(set(config.labels)) != len(config.labels) or config.labels[:1] != (known[0],):
        raise CheckpointError(
            f"{path}: labels {', '.join(config.labels) or 'none'}: expected {known[0]} first, and each once; "
            "export the model again"
        )


def _check_shapes(path: pathlib.Path, config: ModelConfig, tensors: Tensors) -> None:
    expected = tensor_shapes(config.width, config.classes, config.channels_in, config.ocr_channels, config.key_channels)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise CheckpointError(
                f"{path}: tensor {name} is {shapes.get(name, 'missing')}, "
                f"the configuration wants {expected.get(name, 'none of that name')}; export the model again"
            )


def folded(tensors: Mapping[str, NDArray[np.float32]]) -> Tensors:
    """Fold every batch norm into the convolution before it: `X.conv.weight` and `X.conv.bias` in place of `X.norm.*`.

    With running statistics, norm(conv(x)) is conv'(x) with weight' = weight * s and bias' = beta - mean * s,
    s = gamma / sqrt(variance + epsilon). Tensors without a batch norm stay as they are, and are not copied.
    """
    result = {name: tensor for name, tensor in tensors.items() if ".norm." not in name}
    for name in tensors:
        if not name.endswith(".norm.running_var"):
            continue
        layer = name.removesuffix(".norm.running_var")
        gamma, beta, mean, variance = (
            tensors[f"{layer}.norm.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + np.float32(NORM_EPSILON))
        result[f"{layer}.conv.weight"] = tensors[f"{layer}.conv.weight"] * scale[:, None, None, None]
        result[f"{layer}.conv.bias"] = beta - mean * scale
    return result


def save_checkpoint(
    config: ModelConfig, tensors: Mapping[str, NDArray[np.float32]], folder: pathlib.Path
) -> pathlib.Path:
    """Write a model into a folder and enter it in the folder's manifest.

    Args:
        config: of the model; its name becomes the file's.
        tensors: its weights, named as in `network.HrnetOcr`'s state dict.
        folder: receives NAME.safetensors.

    Returns:
        The file.

    Raises:
        CheckpointError: a tensor holds infinity or no number, as those of a training that diverged.
    """
    stored: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{config.name}: tensor {name} holds values that are not finite; train it again")
        if tensor.ndim == 4:
            stored[name], stored[name + SCALE] = _in_int8(tensor)
        else:
            stored[name] = np.ascontiguousarray(tensor, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config.name}.safetensors"
    with whole_file(path) as stream:
        stream.write(save(stored, {"format": FORMAT, "config": json.dumps(asdict(config))}))
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.glob("*.safetensors"))]
    with whole_file(folder / MANIFEST) as stream:
        stream.write("".join(lines).encode())
    return path


def _in_int8(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights of a convolution rounded to 8 bits, and the scale of each output channel."""
    scale = np.abs(weights).max((1, 2, 3)).astype(np.float32) / LARGEST_INT8
    steps = weights / np.where(scale > 0, scale, 1)[:, None, None, None]
    return np.ascontiguousarray(np.rint(steps), np.int8), scale  # `save` writes memory as it lies
