"""What a run consists of, and keeps on disk: weights, their moving average, optimiser, progress."""

from __future__ import annotations

import pathlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.checkpoint import ModelConfig, bundled_models, find_model, load_checkpoint
from app.network import HrnetOcr, load
from app.organs import Organ
from app.whole_file import whole_file
from training.grow import STEM, fit_input_channels, grown_weights
from training.other_networks import other_network
from training.recipes import HRNET_OCR, Recipe

LAST, BEST = "last.pt", "best.pt"
Tensors = tuple[Tensor, ...] | list[Tensor]


class TrainingError(Exception):
    """Training cannot go on; the message says why and what to do."""


@dataclass
class Progress:
    """How far a run is, over all the times it was resumed.

    Attributes:
        step: optimisation steps done.
        seconds: time spent.
        best_dice: highest mean DSC of a validation on the held-out cases.
        validations_since_best: validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    best_dice: float = 0.0
    validations_since_best: int = 0


def build_network(recipe: Recipe) -> nn.Module:
    """The recipe's network, He-initialised if it is HRNet-OCR."""
    if recipe.architecture != HRNET_OCR:
        return other_network(recipe.architecture, recipe.channels_in)
    channels = recipe.channels_in, recipe.ocr_channels, recipe.key_channels
    return HrnetOcr(recipe.width, len(Organ), *channels)


def model_config(recipe: Recipe, name: str, version: str, training_data: str) -> ModelConfig:
    """What inference must know of a recipe's network."""
    return ModelConfig(
        name=name,
        version=version,
        width=recipe.width,
        labels=tuple(organ.name.lower() for organ in Organ),
        channels_in=recipe.channels_in,
        ocr_channels=recipe.ocr_channels,
        key_channels=recipe.key_channels,
        window_hu=recipe.window_hu,
        spacing_mm=recipe.spacing_mm,
        neighbour_mm=recipe.neighbour_mm,
        training_data=training_data,
    )


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolutions, none for biases and batch norm."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def averaged_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The network's averaged weights in a run's checkpoint."""
    prefix = "module."  # AveragedModel's, which also keeps a counter
    return {key.removeprefix(prefix): value for key, value in state["average"].items() if key.startswith(prefix)}


def load_run(folder: pathlib.Path) -> dict[str, Any]:
    """A run's checkpoint: of its best validation where its recipe has a patience, else the last one.

    Raises:
        TrainingError: there is none.
    """
    best, last = folder / BEST, folder / LAST
    if not last.exists():
        raise TrainingError(f"{last}: no such checkpoint; give the folder of a run that was trained")
    state: dict[str, Any] = torch.load(best if best.exists() else last, map_location="cpu", weights_only=True)
    return state


def is_run(source: str) -> bool:
    """Whether this is the folder of a run, and not a bundled model's name."""
    return (pathlib.Path(source) / LAST).exists()


def trained_weights(source: str, channels_in: int) -> dict[str, Tensor]:
    """A run's averaged weights or a bundled model's, for so many input channels.

    Args:
        source: the folder of the run, or the model's name.
        channels_in: no fewer than they were trained with.

    Raises:
        TrainingError: there is neither.
    """
    path = pathlib.Path(source)
    if is_run(source):
        weights = averaged_weights(load_run(path))
    elif source in bundled_models():
        weights = load(load_checkpoint(find_model(source))).state_dict()
    else:
        raise TrainingError(f"{path / LAST}: no checkpoint there; train there first, or name a bundled model")
    weights[STEM] = fit_input_channels(weights[STEM], channels_in)
    return weights


class RunState:
    """The state of one training run in one folder: `last.pt` to resume from, and where asked for, `best.pt`.

    Started by torchrun, every process has the same state; the first one saves it.
    """

    def __init__(self, folder: pathlib.Path, recipe: Recipe, device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        torch.manual_seed(recipe.seed)
        self.network = build_network(recipe).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.together: nn.Module = self.network  # what the forward pass goes through
        self.is_first = True
        if dist.is_initialized():
            self.together = nn.parallel.DistributedDataParallel(self.network)
            self.is_first = dist.get_rank() == 0
        self.average = AveragedModel(self.network, multi_avg_fn=self._average, use_buffers=True)
        groups = parameter_groups(self.network, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, recipe.learning_rate)
        self.progress = Progress()
        folder.mkdir(parents=True, exist_ok=True)

    def _average(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """A moving average that forgets its random start: its decay grows with the number of steps averaged."""
        decay = min(self.recipe.ema_decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averaged, current, count)  # type: ignore[no-untyped-call]

    @property
    def checkpoint(self) -> pathlib.Path:
        return self.folder / LAST

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint, whole or not at all."""
        if not self.is_first:
            return
        state = {
            "recipe": asdict(self.recipe),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
        }
        with whole_file(self.folder / name) as stream:
            torch.save(state, stream)

    def keep(self) -> None:
        """Write the averaged weights of now into a folder of their own, a run to export or to average with."""
        if not self.is_first:
            return
        folder = self.folder / f"minute-{self.progress.seconds / 60:05.1f}"
        folder.mkdir(exist_ok=True)
        with whole_file(folder / LAST) as stream:
            torch.save({"recipe": asdict(self.recipe), "average": self.average.state_dict()}, stream)

    def resume(self) -> None:
        """Go on where the checkpoint stands, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["rng"])

    def start_from(self, source: str) -> None:
        """Begin with trained weights and the batch-norm statistics that belong to them.

        Args:
            source: the folder of another run, whose averaged weights are taken, or a bundled model's name.

        Raises:
            TrainingError: there are no such weights, or they belong to another network.
        """
        trained = trained_weights(source, self.recipe.channels_in)
        try:
            self.network.load_state_dict(trained)
        except RuntimeError as error:
            raise TrainingError(f"{source}: its network is not the recipe's; choose another start or recipe") from error
        self.average.module.load_state_dict(self.network.state_dict())

    def grow_from(self, model: str) -> None:
        """Begin with a narrower bundled model, grown to the recipe's size; see `training.grow`.

        Raises:
            CheckpointError: there is no such model.
            TrainingError: the recipe's network is narrower somewhere, or another one.
        """
        small = load_checkpoint(find_model(model))
        try:
            target = model_config(self.recipe, model, "0", "")
            self.network.load_state_dict(grown_weights(load(small).state_dict(), small.config, self.network, target))
        except (ValueError, KeyError) as error:
            raise TrainingError(f"{model} cannot grow into the recipe's network: {error}") from error
        self.average.module.load_state_dict(self.network.state_dict())
