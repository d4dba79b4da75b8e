"""What a run consists of, and keeps on disk: weights, their moving average, optimiser, progress."""

from __future__ import annotations

import pathlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.whole_file import whole_file
from training.grow import grown_weights
from training.recipes import Optimiser, Recipe
from training.weights import BEST, LAST, TrainingError, build_network, bundled_weights, read_state, trained_weights

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass
class Progress:
    """How far a run is, over all the times it was resumed.

    Attributes:
        step: optimisation steps done.
        seconds: time spent on them.
        best_dice: highest mean DSC of a validation on the held-out cases.
        validations_since_best: validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    best_dice: float = 0.0
    validations_since_best: int = 0

    def share_done(self, optimiser: Optimiser, minutes: float | None) -> float:
        """0 at the start, 1 when the steps, or the minutes where they are given, are used up."""
        return self.step / optimiser.steps if minutes is None else self.seconds / 60 / minutes

    def is_out_of_patience(self, optimiser: Optimiser) -> bool:
        """Whether as many validations as the recipe allows were no better than the best one."""
        return optimiser.patience is not None and self.validations_since_best >= optimiser.patience


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolutions, none for biases and batch norm."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


class RunState:
    """The state of one training run in one folder: `last.pt` to resume from, and where asked for, `best.pt`.

    Started by torchrun, every process has the same state; the first one saves it.

    Attributes:
        network: the network.
        parallel_network: the same, as a training step calls it: where there are several processes, it takes the mean of
            their gradients.
        average: the moving average of its weights, which is validated and exported.
        optimizer: of its weights.
        progress: how far the run is.
        is_first: whether this process logs, validates and saves.
    """

    def __init__(self, folder: pathlib.Path, recipe: Recipe, device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        torch.manual_seed(recipe.seed)
        self.network = build_network(recipe).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parallel_network: nn.Module = self.network
        self.is_first = True
        if dist.is_initialized():
            self.parallel_network = nn.parallel.DistributedDataParallel(self.network)
            self.is_first = dist.get_rank() == 0
        self.average = AveragedModel(self.network, multi_avg_fn=self._average, use_buffers=True)
        groups = parameter_groups(self.network, recipe.optimiser.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, recipe.optimiser.learning_rate)
        self.progress = Progress()
        folder.mkdir(parents=True, exist_ok=True)

    def _average(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """A moving average that forgets its random start: its decay grows with the number of steps averaged."""
        decay = min(self.recipe.optimiser.ema_decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averaged, current, count)  # type: ignore[no-untyped-call]

    @property
    def checkpoint(self) -> pathlib.Path:
        return self.folder / LAST

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
        }
        self._write(self.folder / name, state)

    def keep(self) -> None:
        """Write the averaged weights of now into a folder of their own, a run to export or to average with."""
        path = self.folder / f"minute-{self.progress.seconds / 60:05.1f}" / LAST
        self._write(path, {"recipe": asdict(self.recipe), "average": self.average.state_dict()})

    def _write(self, path: pathlib.Path, state: dict[str, Any]) -> None:
        if not self.is_first:
            return
        try:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as stream:
                torch.save(state, stream)
        except (OSError, RuntimeError) as error:  # torch's own, where its stream fails
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"{path}: cannot be written ({reason}); free disk space, and train on from the last one"
            ) from error

    def resume(self) -> None:
        """Go on where the checkpoint stands, if there is one.

        Raises:
            TrainingError: it cannot be read, or is another recipe's.
        """
        if not self.checkpoint.exists():
            return
        state, model = read_state(self.checkpoint), asdict(self.recipe.model)
        try:
            if model | state["recipe"].get("model", {}) != model:  # its tensors may fit all the same
                raise ValueError("the network sees scans otherwise")
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self.checkpoint}: of another recipe; choose another folder, or the recipe that began it"
            ) from error

    def start_from(self, source: str) -> None:
        """Begin with trained weights and the batch-norm statistics that belong to them.

        Args:
            source: the folder of another run, whose averaged weights are taken, or a bundled model's name.

        Raises:
            TrainingError: there are no such weights, or they belong to another network.
            CheckpointError: the bundled model is damaged.
        """
        trained = trained_weights(source, self.recipe.model.channels_in)
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
        source, weights = bundled_weights(model)
        try:
            self.network.load_state_dict(grown_weights(weights, source, self.network, self.recipe.model))
        except (ValueError, KeyError) as error:
            raise TrainingError(f"{model} cannot grow into the recipe's network: {error}") from error
        self.average.module.load_state_dict(self.network.state_dict())

    def note_validation(self, dice: float) -> None:
        """Count a validation's mean DSC towards the recipe's patience, and keep the weights if it is the best."""
        if self.recipe.optimiser.patience is None:
            return
        if dice > self.progress.best_dice:
            self.progress.best_dice, self.progress.validations_since_best = dice, 0
            self.save(BEST)
        else:
            self.progress.validations_since_best += 1
