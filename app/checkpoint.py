"""A model on disk: weights and configuration in one safetensors file, or in shards that each stay under 100 MB."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import CheckpointError
from .network import HrnetOcr
from .organs import Organ
from .whole_file import whole_file

HERE = pathlib.Path(__file__).resolve().parent
# Installed, the weights lie inside the package; in the source tree and in the image, beside it.
WEIGHTS_DIR = next((d for d in (HERE / "weights", HERE.parent / "weights") if d.is_dir()), HERE / "weights")
MANIFEST = "SHA256SUMS"  # readable by `sha256sum --check`
FORMAT = "hrnet-ocr/1"
SHARD_BYTES = 95_000_000  # git hosts refuse files of 100 MB
COUNTER = "num_batches_tracked"  # batch norm's, of no use to a trained network


@dataclass(frozen=True)
class ModelConfig:
    """What a network needs to be rebuilt and fed as in training.

    Attributes:
        name: of the model, such as `fast`.
        version: of the weights.
        width: backbone width.
        classes: labels, background included.
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
    classes: int
    channels_in: int
    ocr_channels: int
    key_channels: int
    window_hu: tuple[float, float]
    spacing_mm: float | None
    neighbour_mm: float | None
    training_data: str

    @property
    def organs(self) -> tuple[Organ, ...]:
        """What the channels of the logits are, the background first."""
        return tuple(Organ)[: self.classes]

    def build(self, initialise: bool = True) -> HrnetOcr:
        """The network with these dimensions; without `initialise` its weights are not set."""
        channels = self.channels_in, self.ocr_channels, self.key_channels
        return HrnetOcr(self.width, self.classes, *channels, initialise=initialise)


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory: configuration, network, and the sha256 of each file it came from."""

    config: ModelConfig
    network: HrnetOcr
    sha256: dict[str, str]


def bundled_models(folder: pathlib.Path = WEIGHTS_DIR) -> list[str]:
    """Names of the models that have weights in the folder."""
    return sorted({re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", path.name) for path in folder.glob("*.safetensors")})


def find_model(name: str, folder: pathlib.Path = WEIGHTS_DIR) -> list[pathlib.Path]:
    """The file, or the shards in order, of a bundled model.

    Raises:
        CheckpointError: there is no such model, or a shard of it is missing.
    """
    single = folder / f"{name}.safetensors"
    if single.exists():
        return [single]
    shards = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    if not shards:
        have = ", ".join(bundled_models(folder)) or "none"
        raise CheckpointError(
            f"{folder}: no weights for model '{name}' (there are: {have}); choose one of these, or give a weights file"
        )
    count = int(shards[0].stem.rsplit("-of-", 1)[1])
    if len(shards) != count:
        raise CheckpointError(f"{folder}: {len(shards)} of {count} shards of model '{name}'; copy the folder again")
    return shards


def load_checkpoint(paths: list[pathlib.Path]) -> Checkpoint:
    """Read one model from its file or shards, and check everything that can be checked.

    Raises:
        CheckpointError: a file is missing, truncated, foreign, altered, or does not fit its own configuration.
    """
    weights: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    config: ModelConfig | None = None
    for path in paths:
        digests[path.name] = _checked_digest(path)
        try:
            with safe_open(path, framework="pt") as file:
                config = _read_config(path, file.metadata() or {})
                weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    if config is None:
        raise CheckpointError("no weights file given; name a bundled model or a file")
    return Checkpoint(config, _network(paths[0], config, weights), digests)


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
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    listed = {name: value for value, name in (line.split(maxsplit=1) for line in lines if line.strip())}
    if listed.get(path.name, digest) != digest:
        raise CheckpointError(f"{path}: sha256 {digest[:12]}... is not the one in {MANIFEST}; copy the file again")
    return digest


def _read_config(path: pathlib.Path, metadata: Mapping[str, str]) -> ModelConfig:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this program (no '{FORMAT}' in its metadata)")
    try:
        fields = json.loads(metadata["config"])
        fields["window_hu"] = tuple(fields["window_hu"])
        return ModelConfig(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read ({error}); export it again") from error


def _network(path: pathlib.Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> HrnetOcr:
    """The network with these weights, in float32 on the CPU, in evaluation mode."""
    network = config.build(initialise=False)
    state = network.state_dict()
    wanted = {name: tuple(t.shape) for name, t in state.items() if not name.endswith(COUNTER)}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: tensor {name} is {found.get(name, 'missing')}, "
                f"the configuration wants {wanted.get(name, 'none of that name')}; export the model again"
            )
    counters = {name: torch.zeros((), dtype=torch.int64) for name in state.keys() - wanted.keys()}
    single = {name: tensor.float() for name, tensor in weights.items()}  # stored as fp16, folded in float32
    network.load_state_dict(single | counters, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def save_checkpoint(config: ModelConfig, state: Mapping[str, Tensor], folder: pathlib.Path) -> list[pathlib.Path]:
    """Write a model into a folder and enter it in the folder's manifest.

    Convolutions are stored as fp16; batch norm stays float32, because running variances do not fit fp16's range.

    Args:
        config: of the model; its name becomes the file's.
        state: the network's state dict.
        folder: receives NAME.safetensors, or NAME-i-of-n.safetensors where that would exceed 95 MB.
    """
    tensors = {
        name: tensor.detach().cpu().to(torch.float16 if tensor.ndim == 4 else torch.float32).contiguous()
        for name, tensor in state.items()
        if not name.endswith(COUNTER)
    }
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    count = len(shards)
    names = [config.name if count == 1 else f"{config.name}-{i + 1}-of-{count}" for i in range(count)]
    metadata = {"format": FORMAT, "config": json.dumps(asdict(config))}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{config.name}*.safetensors"):
        if old.stem == config.name or old.stem.startswith(f"{config.name}-"):
            old.unlink()
    paths = [folder / f"{name}.safetensors" for name in names]
    for path, shard in zip(paths, shards, strict=True):
        with whole_file(path) as stream:
            stream.write(save(shard, metadata))
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.glob("*.safetensors"))]
    with whole_file(folder / MANIFEST) as stream:
        stream.write("".join(lines).encode())
    return paths
