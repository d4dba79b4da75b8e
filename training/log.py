"""A run's log: a line and a row of `log.csv` every few steps, and all of them as a picture, `curve.png`."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from app.gpu_memory import MIB
from app.host import peak_rss_mib
from app.organs import ORGANS, Organ
from app.process import drop_standard_output
from app.whole_file import whole_file
from training.state import Progress

ORGAN_NAMES = [organ.key for organ in ORGANS]
COLUMNS = ["step", "minutes", "lr", "loss", "images_s", "wait", "peak_mib", *ORGAN_NAMES]


class TrainingLog:
    """What happened since the last row of a run's log, and the log.

    Args:
        folder: of the run.
        batch: crops per step.
    """

    def __init__(self, folder: pathlib.Path, batch: int) -> None:
        self.path, self.picture, self.batch = folder / "log.csv", folder / "curve.png", batch
        self._forget()

    def _forget(self) -> None:
        self.losses: list[float] = []
        self.seconds = self.waited = 0.0

    def add(self, loss: float, seconds: float, waited: float) -> None:
        """Note a step: its loss, the time it took, and how much of it was spent waiting for its batch."""
        self.losses.append(loss)
        self.seconds += seconds
        self.waited += waited

    def write(self, progress: Progress, rate: float, device: torch.device, scores: Mapping[Organ, float]) -> None:
        """Print a line about the steps since the last one, append it to log.csv and draw the curve.

        Args:
            progress: of the run.
            rate: the learning rate.
            device: whose memory is logged.
            scores: of a validation, if there was one.
        """
        values = {
            "step": progress.step,
            "minutes": round(progress.seconds / 60, 2),
            "lr": round(rate, 6),
            "loss": round(float(np.mean(self.losses)), 4),
            "images_s": round(self.batch * len(self.losses) / self.seconds, 2),
            "wait": round(self.waited / self.seconds, 3),
            "peak_mib": round(peak_mib(device)),
        }
        dice = {organ.key: round(score, 4) for organ, score in scores.items()}
        row = values | dice
        try:
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        except OSError:  # a full disk, a terminal or a pipe that was closed: no reason to lose a run
            drop_standard_output()
        with self.path.open("a+", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            stream.seek(0)
            before = stream.read()
            if not before:
                writer.writeheader()
            elif not before.endswith("\n"):  # cut by a crash or a full disk
                stream.write("\n")
            writer.writerow(row)
        draw_curve(self.path, self.picture)
        self._forget()


def peak_mib(device: torch.device) -> float:
    """Peak memory: that of the GPU's allocator, or this process's."""
    return torch.cuda.max_memory_reserved(device) / MIB if device.type == "cuda" else peak_rss_mib() or 0.0


def draw_curve(log: pathlib.Path, picture: pathlib.Path) -> None:
    """Draw a run's log.csv as a PNG: the loss over the steps, and the DSC of every validation; no row that was cut."""
    with log.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream, COLUMNS) if row["step"].isdigit() and None not in row.values()]
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows])
    left.set(xlabel="step", ylabel="loss")
    for organ in ORGAN_NAMES:
        known = [row for row in rows if row[organ]]
        right.plot([int(row["step"]) for row in known], [float(row[organ]) for row in known], "o-", label=organ)
    right.set(xlabel="step", ylabel="DSC on the grid", ylim=(0, 1))
    right.legend(loc="lower right")
    with whole_file(picture) as stream:
        figure.savefig(stream, format="png", dpi=100)
