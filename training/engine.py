"""The training loop: batches -> loss -> weights and their moving average, checkpointed, resumable, bounded in time."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.checkpoint import bundled_models, find_model, load_checkpoint
from app.intensity import network_input
from app.network import HrnetOcr
from app.read_ahead import ReadAhead
from training.augment import augment
from training.cache import CachedCase
from training.losses import segmentation_loss
from training.recipes import Recipe
from training.sampling import Batch, SliceSampler
from training.validation import ORGANS, draw_curve, grid_dice

LAST, BEST = "last.pt", "best.pt"
SAVE_SECONDS = 300.0
LOG_STEPS = 20
BATCHES_AHEAD = 4
CALIBRATION_BATCHES = 50
POLY_EPOCHS, POLY_POWER = 1000, 0.9  # the paper's (1 - epoch / 1000)^0.9


class TrainingError(Exception):
    """Training cannot go on; the message says why and what to do."""


@dataclass
class Progress:
    """How far a run is, over all the times it was resumed.

    Attributes:
        step: optimisation steps done.
        seconds: time spent.
        best_dice: highest mean DSC of a look at the held-out cases.
        looks_since_best: looks since then.
    """

    step: int = 0
    seconds: float = 0.0
    best_dice: float = 0.0
    looks_since_best: int = 0


def build_network(recipe: Recipe) -> HrnetOcr:
    """The recipe's network, He-initialised."""
    return HrnetOcr(recipe.width, ocr_channels=recipe.ocr_channels, key_channels=recipe.key_channels)


def share_done(progress: Progress, recipe: Recipe, seconds: float | None) -> float:
    """0 at the start, 1 when the steps, or the seconds where they are given, are used up."""
    return progress.step / recipe.steps if seconds is None else progress.seconds / seconds


def learning_rate(progress: Progress, recipe: Recipe, seconds: float | None) -> float:
    """Linear warm-up, then half a cosine to zero, or the paper's polynomial of the epoch."""
    warm = min(1.0, (progress.step + 1) / recipe.warmup_steps)
    done = min(1.0, share_done(progress, recipe, seconds))
    if recipe.schedule == "poly":
        epoch = int(done * (recipe.epochs or 1))
        return recipe.learning_rate * warm * (1 - epoch / POLY_EPOCHS) ** POLY_POWER
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolutions, none for biases and batch norm."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def averaged_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The network's averaged weights in a run's checkpoint."""
    prefix = "module."  # AveragedModel's, which also keeps a counter
    return {key.removeprefix(prefix): value for key, value in state["average"].items() if key.startswith(prefix)}


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Every batch norm of a network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def calibrate(network: nn.Module, sampler: SliceSampler, batches: int = CALIBRATION_BATCHES) -> None:
    """Take batch norm's running statistics anew, as plain means over whole slices without augmentation."""
    device = next(network.parameters()).device
    norms = batch_norms(network)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    height, width = (side // 32 * 32 for side in sampler.canvas)
    top, left = ((side - kept) // 2 for side, kept in zip(sampler.canvas, (height, width), strict=True))
    for _ in range(batches):
        images = sampler.batch()[0][:, :, top : top + height, left : left + width]
        network(network_input(images.to(device).float()).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


class Run:
    """One training run in one folder: `last.pt` to resume from, `log.csv` and `curve.png` of losses and scores.

    Where the recipe has a patience, `best.pt` holds the weights of the best look. Started by torchrun, every process
    trains on its share of the batch; the first one logs, looks, saves and decides.
    """

    def __init__(self, folder: pathlib.Path, recipe: Recipe, device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        torch.manual_seed(recipe.seed)
        self.network = build_network(recipe).to(device, memory_format=torch.channels_last)
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

    def _average(self, averaged: tuple[Tensor, ...], current: tuple[Tensor, ...], count: Tensor) -> None:
        """A moving average that forgets its random start: its decay grows with the number of steps averaged."""
        decay = min(self.recipe.ema_decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    @property
    def checkpoint(self) -> pathlib.Path:
        return self.folder / LAST

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
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
        partial = self.folder / f".{name}.{os.getpid()}.partial"
        torch.save(state, partial)
        partial.replace(self.folder / name)

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

    def start_from(self, source: str, sampler: SliceSampler) -> None:
        """Begin with trained weights, their batch-norm statistics taken anew on whole slices.

        Args:
            source: the folder of another run, whose averaged weights are taken, or a bundled model's name.
            sampler: draws the slices for the statistics.

        Raises:
            TrainingError: there are no such weights, or they belong to another network.
        """
        path = pathlib.Path(source) / LAST
        if path.exists():
            trained = averaged_weights(torch.load(path, map_location="cpu", weights_only=True))
        elif source in bundled_models():
            trained = load_checkpoint(find_model(source)).network.state_dict()
        else:
            raise TrainingError(f"{path}: no checkpoint to start from; train there first, or name a bundled model")
        try:
            self.network.load_state_dict(trained)
        except RuntimeError as error:
            raise TrainingError(f"{source}: its network is not the recipe's; choose another start or recipe") from error
        calibrate(self.network, sampler)
        self.average.module.load_state_dict(self.network.state_dict())

    def log(self, **row: object) -> None:
        """Print a line, append it to log.csv and draw the curve anew."""
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        path = self.folder / "log.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["step", "minutes", "lr", "loss", "images_s", "wait", "gpu_mib", *ORGANS])
            writer.writerow(row.values())
        draw_curve(path, self.folder / "curve.png")

    def _peak_gpu_mib(self) -> int | None:
        return torch.cuda.max_memory_reserved(self.device) >> 20 if self.device.type == "cuda" else None

    def step(self, batch: Batch) -> float:
        """One optimisation step; returns the loss."""
        images, labels, sizes = (part.to(self.device) for part in batch)
        inputs, marks = augment(images, labels, sizes, self.recipe)
        self.network.train()
        if self.recipe.frozen_norm:
            for norm in batch_norms(self.network):
                norm.eval()
        # bfloat16 on a GPU; float32 on a CPU, where narrow networks lose more to padded channels than they gain.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.together(inputs.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(logits, marks, self.recipe.dice_weight, self.recipe.coarse_weight)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return loss.item()

    def train(
        self, sampler: SliceSampler, held_out: Sequence[CachedCase], seconds: float | None, check_seconds: float
    ) -> None:
        """Train until the recipe's steps, or `seconds`, are used up; check on the held-out cases now and then.

        A thread draws the batches ahead of the steps. SIGTERM saves the checkpoint and ends the loop after the
        current step.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        with contextlib.closing(ReadAhead((sampler.batch() for _ in itertools.count()), BATCHES_AHEAD)) as batches:
            self._loop(batches, held_out, seconds, check_seconds, ended)

    def _loop(
        self,
        batches: Iterator[Batch],
        held_out: Sequence[CachedCase],
        seconds: float | None,
        check_seconds: float,
        ended: threading.Event,
    ) -> None:
        saved = checked = time.monotonic()
        losses: list[float] = []
        since, waited = self.progress.seconds, 0.0
        done = share_done(self.progress, self.recipe, seconds) >= 1
        while not self._agree(done or ended.is_set()):
            begin = time.monotonic()
            rate = learning_rate(self.progress, self.recipe, seconds)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = next(batches)
            waited += time.monotonic() - begin
            losses.append(self.step(batch))
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"loss is {losses[-1]} at step {self.progress.step}; lower the learning rate")
            now = time.monotonic()
            self.progress.step += 1
            self.progress.seconds += now - begin
            done = share_done(self.progress, self.recipe, seconds) >= 1
            look = self.is_first and bool(held_out) and (done or now - checked > check_seconds)
            if look or (self.is_first and self.progress.step % LOG_STEPS == 0):
                scores = grid_dice(self.average, held_out, self.recipe) if look else {}
                spent = self.progress.seconds - since
                self.log(
                    step=self.progress.step,
                    minutes=round(self.progress.seconds / 60, 2),
                    lr=round(rate, 6),
                    loss=round(float(np.mean(losses)), 4),
                    images_s=round(self.recipe.batch * len(losses) / spent, 2),
                    wait=round(waited / spent, 3),
                    gpu_mib=self._peak_gpu_mib(),
                    **{organ.name.lower(): round(score, 4) for organ, score in scores.items()},
                )
                losses, since, waited = [], self.progress.seconds, 0.0
                if look:
                    checked = time.monotonic()
                    done = done or self._is_out_of_patience(float(np.mean(list(scores.values()))))
            if done or ended.is_set() or now - saved > SAVE_SECONDS:
                self.save()
                saved = now

    def _agree(self, stop: bool) -> bool:
        """What the first process decides, for all."""
        if not dist.is_initialized():
            return stop
        decision = torch.tensor([float(stop)], device=self.device)
        dist.broadcast(decision, src=0)
        return bool(decision.item())

    def _is_out_of_patience(self, dice: float) -> bool:
        """Take note of a look's mean DSC, keep the weights if it is the best, and tell if it is time to stop."""
        if self.recipe.patience is None:
            return False
        if dice > self.progress.best_dice:
            self.progress.best_dice, self.progress.looks_since_best = dice, 0
            self.save(BEST)
        else:
            self.progress.looks_since_best += 1
        return self.progress.looks_since_best >= self.recipe.patience
