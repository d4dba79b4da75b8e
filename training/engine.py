"""The training loop: batches -> loss -> weights and their moving average, logged, validated, bounded in time."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from app.engines.torch_engine import best_dtype
from app.gpu_memory import MIB
from app.host import peak_rss_mib
from app.volumes.read_ahead import ReadAhead
from training.augment import augment
from training.cache import CachedCase
from training.losses import segmentation_loss
from training.norms import frozen_norms
from training.recipes import Recipe
from training.sampling import Batch, SliceSampler
from training.state import BEST, Progress, RunState, TrainingError
from training.validation import ORGAN_NAMES, draw_curve, grid_dice

SAVE_SECONDS = 300.0
LOG_STEPS = 20
BATCHES_AHEAD = 4
POLY_EPOCHS, POLY_POWER = 1000, 0.9  # the paper's (1 - epoch / 1000)^0.9


def share_done(progress: Progress, recipe: Recipe, seconds: float | None) -> float:
    """0 at the start, 1 when the steps, or the seconds where they are given, are used up."""
    return progress.step / recipe.steps if seconds is None else progress.seconds / seconds


def learning_rate(progress: Progress, recipe: Recipe, seconds: float | None) -> float:
    """Linear warm-up, then half a cosine to zero, or the paper's polynomial of the epoch."""
    warm = min(1.0, (progress.step + 1) / recipe.warmup_steps)
    done = min(1.0, share_done(progress, recipe, seconds))
    if recipe.schedule == "poly":
        epoch = int(done * (recipe.epochs or 1))
        return recipe.learning_rate * warm * float((1 - epoch / POLY_EPOCHS) ** POLY_POWER)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


class Run(RunState):
    """One training run in one folder: its state, and `log.csv` and `curve.png` of losses and scores.

    Where the recipe has a patience, `best.pt` holds the weights of the best validation. Started by torchrun, every
    process trains on its share of the batch; the first one logs, validates, saves and decides.
    """

    def log(self, **row: object) -> None:
        """Print a line, append it to log.csv and draw the curve anew."""
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        path = self.folder / "log.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["step", "minutes", "lr", "loss", "images_s", "wait", "peak_mib", *ORGAN_NAMES])
            writer.writerow(row.values())
        draw_curve(path, self.folder / "curve.png")

    def _peak_mib(self) -> float:
        """Peak memory: the GPU's allocator's, or this process's."""
        return (
            torch.cuda.max_memory_reserved(self.device) / MIB if self.device.type == "cuda" else peak_rss_mib() or 0.0
        )

    def step(self, batch: Batch) -> float:
        """One optimisation step; returns the loss."""
        images, labels, sizes = (part.to(self.device) for part in batch)
        inputs, cropped_labels = augment(images, labels, sizes, self.recipe)
        self.network.train()
        for norm in frozen_norms(self.network, self.recipe.frozen_norm):
            norm.eval()
        # 16 bits where they are faster; bfloat16 on a GPU too, which needs no scaling of the loss.
        is_faster = best_dtype(self.device) != torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_faster):
            logits = self.together(inputs.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(logits, cropped_labels, self.recipe.dice_weight, self.recipe.coarse_weight)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return loss.item()

    def train(
        self,
        sampler: SliceSampler,
        held_out: Sequence[CachedCase],
        seconds: float | None,
        validate_seconds: float,
        keep_seconds: float = 0,
    ) -> bool:
        """Train until the recipe's steps, or `seconds`, are used up.

        The held-out cases are scored every `validate_seconds` and at the end; the averaged weights are kept every
        `keep_seconds`; with 0, never.

        A thread draws the batches ahead of the steps. SIGTERM saves the checkpoint and ends the loop after the
        current step.

        Returns:
            Whether the run is over; False where SIGTERM ended it early.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        with contextlib.closing(ReadAhead((sampler.batch() for _ in itertools.count()), BATCHES_AHEAD)) as batches:
            self._loop(batches, held_out, seconds, validate_seconds, keep_seconds, ended)
        return not ended.is_set()

    def _loop(
        self,
        batches: Iterator[Batch],
        held_out: Sequence[CachedCase],
        seconds: float | None,
        validate_seconds: float,
        keep_seconds: float,
        ended: threading.Event,
    ) -> None:
        saved = validated = time.monotonic()
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
            before = self.progress.seconds
            self.progress.seconds += now - begin
            if keep_seconds and self.progress.seconds // keep_seconds > before // keep_seconds:
                self.keep()
            done = share_done(self.progress, self.recipe, seconds) >= 1
            validates = self.is_first and bool(held_out) and validate_seconds != 0
            validates = validates and (done or now - validated > validate_seconds)
            if validates or (self.is_first and self.progress.step % LOG_STEPS == 0):
                scores = grid_dice(self.average, held_out, self.recipe) if validates else {}
                spent = self.progress.seconds - since
                self.log(
                    step=self.progress.step,
                    minutes=round(self.progress.seconds / 60, 2),
                    lr=round(rate, 6),
                    loss=round(float(np.mean(losses)), 4),
                    images_s=round(self.recipe.batch * len(losses) / spent, 2),
                    wait=round(waited / spent, 3),
                    peak_mib=round(self._peak_mib()),
                    **{organ.key: round(score, 4) for organ, score in scores.items()},
                )
                losses, since, waited = [], self.progress.seconds, 0.0
                if validates:
                    validated = time.monotonic()
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
        """Note a validation's mean DSC, keep the weights if it is the best, and tell whether it is time to stop."""
        if self.recipe.patience is None:
            return False
        if dice > self.progress.best_dice:
            self.progress.best_dice, self.progress.validations_since_best = dice, 0
            self.save(BEST)
        else:
            self.progress.validations_since_best += 1
        return self.progress.validations_since_best >= self.recipe.patience
