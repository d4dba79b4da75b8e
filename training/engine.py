"""The training loop: batches -> loss -> weights and their moving average, logged, validated, bounded in time."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from app.engines.torch_engine import best_dtype
from app.organs import Organ
from app.process import ENDING
from app.volumes.read_ahead import ReadAhead
from training.augment import augment
from training.cache import CachedCase
from training.log import TrainingLog
from training.losses import segmentation_loss
from training.norms import frozen_norms
from training.recipes import Optimiser
from training.sampling import Batch, SliceSampler
from training.state import Progress, RunState
from training.validation import grid_dice
from training.weights import TrainingError

SAVE_SECONDS = 300.0
LOG_STEPS = 20
BATCHES_AHEAD = 4
CLIP_NORM = 5.0  # of the gradient
POLY_EPOCHS, POLY_POWER = 1000, 0.9  # the paper's (1 - epoch / 1000)^0.9


@dataclass(frozen=True)
class Timing:
    """How long a run lasts and how often it validates and keeps weights, in minutes of training.

    Attributes:
        minutes: to train; None: the recipe's steps.
        validate_minutes: between two validations on the held-out cases; the end of the run is one too. 0: none at all.
        keep_minutes: between two moments whose averaged weights are kept. 0: none.
    """

    minutes: float | None = None
    validate_minutes: float = 0.0
    keep_minutes: float = 0.0


class Every:
    """Says when it is time again: at every multiple of a period.

    Args:
        period: in the unit of what is asked about, steps or seconds of training; 0: never.
        start: where the run stands.
    """

    def __init__(self, period: float, start: float) -> None:
        self.period, self.last = period, start

    def due(self, now: float) -> bool:
        """Whether a multiple of the period was reached since this was last asked."""
        is_due = self.period > 0 and now // self.period > self.last // self.period
        self.last = now
        return is_due


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals that came inside the block and would have ended the process, by their numbers; the list grows.

    A second Ctrl-C ends it at once. Not under torchrun, which passes on what the terminal has sent to all.
    """
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if number == signal.SIGINT and noted and not dist.is_initialized():
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learning_rate(progress: Progress, optimiser: Optimiser, minutes: float | None) -> float:
    """Linear warm-up, then half a cosine to zero, or the paper's polynomial of the epoch."""
    warm = min(1.0, (progress.step + 1) / optimiser.warmup_steps)
    done = min(1.0, progress.share_done(optimiser, minutes))
    if optimiser.schedule == "poly":
        epoch = int(done * (optimiser.epochs or 1))
        return optimiser.learning_rate * warm * float((1 - epoch / POLY_EPOCHS) ** POLY_POWER)
    return optimiser.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


class Run:
    """One training run: its state goes from step to step, with `log.csv` and `curve.png` of losses and scores.

    Where the recipe has a patience, `best.pt` holds the weights of the best validation. Started by torchrun, every
    process trains on its share of the batch; the first one logs, validates, saves and decides.
    """

    def __init__(self, state: RunState, timing: Timing = Timing()) -> None:
        self.state, self.timing = state, timing

    def train(self, sampler: SliceSampler, held_out: Sequence[CachedCase] = ()) -> int | None:
        """Train until the recipe's steps, or the minutes, are used up.

        A thread draws the batches ahead of the steps. A signal that would end the process saves the checkpoint and ends
        the loop after the current step.

        Returns:
            The number of the signal that ended it early; None where the run is over.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        state, progress = self.state, self.state.progress
        log = TrainingLog(state.folder, state.recipe.crops.batch)
        log_due = Every(LOG_STEPS, progress.step)
        validation_due = Every(self.timing.validate_minutes * 60, progress.seconds)
        keeping_due = Every(self.timing.keep_minutes * 60, progress.seconds)
        saving_due = Every(SAVE_SECONDS, progress.seconds)
        ahead = ReadAhead((sampler.batch() for _ in itertools.count()), BATCHES_AHEAD)
        with contextlib.closing(ahead) as batches, noted_signals() as signals:
            while not self._agree(self.is_over or bool(signals)):
                begin = time.monotonic()
                rate = self.set_learning_rate()
                batch = next(batches)
                waited = time.monotonic() - begin
                loss = self.step(batch)
                if not math.isfinite(loss):
                    raise TrainingError(f"loss is {loss} at step {progress.step}; lower the learning rate")
                seconds = time.monotonic() - begin
                progress.step += 1
                progress.seconds += seconds
                log.add(loss, seconds, waited)
                if keeping_due.due(progress.seconds):
                    state.keep()
                scores = self.validate(held_out) if validation_due.due(progress.seconds) or self.is_over else {}
                if state.is_first and (log_due.due(progress.step) or scores):
                    log.write(progress, rate, state.device, scores)
                if saving_due.due(progress.seconds) or self.is_over or signals:
                    state.save()
        return signals[0] if signals else None

    @property
    def is_over(self) -> bool:
        """Whether the steps, the minutes, or the recipe's patience are used up."""
        progress, optimiser = self.state.progress, self.state.recipe.optimiser
        return progress.share_done(optimiser, self.timing.minutes) >= 1 or progress.is_out_of_patience(optimiser)

    def set_learning_rate(self) -> float:
        """Give the optimiser the learning rate of the coming step."""
        rate = learning_rate(self.state.progress, self.state.recipe.optimiser, self.timing.minutes)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def step(self, batch: Batch) -> float:
        """One optimisation step; returns the loss."""
        state, recipe = self.state, self.state.recipe
        images, labels, sizes = (part.to(state.device) for part in batch)
        inputs, cropped_labels = augment(images, labels, sizes, recipe.crops)
        state.network.train()
        for norm in frozen_norms(state.network, recipe.optimiser.frozen_norm):
            norm.eval()
        # 16 bits where they are faster; bfloat16 on a GPU too, which needs no scaling of the loss.
        is_faster = best_dtype(state.device) != torch.float32
        with torch.autocast(state.device.type, torch.bfloat16, enabled=is_faster):
            logits = state.parallel_network(inputs.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(logits, cropped_labels, recipe.loss)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.network.parameters(), CLIP_NORM)
        state.optimizer.step()
        state.average.update_parameters(state.network)
        return loss.item()

    def validate(self, held_out: Sequence[CachedCase]) -> dict[Organ, float]:
        """DSC per organ of the averaged weights on the held-out cases; none where this process does not validate."""
        if not (self.state.is_first and held_out and self.timing.validate_minutes):
            return {}
        scores = grid_dice(self.state.average, held_out, self.state.recipe.model)
        if scores:  # the held-out cases show an organ
            self.state.note_validation(float(np.mean(list(scores.values()))))
        return scores

    def _agree(self, stop: bool) -> bool:
        """What the first process decides, for all."""
        if not dist.is_initialized():
            return stop
        decision = torch.tensor([float(stop)], device=self.state.device)
        dist.broadcast(decision, src=0)
        return bool(decision.item())
