"""The streaming loop: slices -> window and grid -> batches of bodies -> network -> labels, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.body import STRIDE, Box, body_box
from app.intensity import network_input, window
from app.model import Model, NoMemoryError, choose_batch_size, free_memory, refined_logits
from app.slices import Plan, neighbour_step, network_grid, to_grid, to_scan, with_neighbours

OnSlice = Callable[[int], None]  # called with the number of slices done since the last call

BODY_MM2 = 1000.0  # a slice with less than 10 cm2 above the window's low end holds no abdomen, not even a newborn's
SURE = 10.0  # the logit of background outside the body's box, where organs have 0


@dataclass
class Findings:
    """What the loop saw on its way.

    Attributes:
        network_slices: slices that went through the network; the others hold no body, lie where scouts show no organ,
            or are thin and interpolated.
        lowest_hu: smallest value of the scan.
        highest_hu: largest value of the scan.
        batch_size: slices a batch, at most.
        read_seconds: time spent waiting for slices.
        network_seconds: all other time.
    """

    network_slices: int = 0
    lowest_hu: int = np.iinfo(np.int16).max
    highest_hu: int = np.iinfo(np.int16).min
    batch_size: int = 0
    read_seconds: float = 0.0
    network_seconds: float = 0.0


@dataclass(frozen=True)
class Anchor:
    """A slice that may go through the network: its input (C, h, w), one channel a neighbour; None without a body."""

    z: int
    image: Tensor | None


@torch.inference_mode()
def segment_slices(
    model: Model,
    slices: Iterable[tuple[int, NDArray[np.int16]]],
    spacing_zyx_mm: Sequence[float],
    labels: NDArray[np.uint8],
    batch_size: int | None = None,
    on_slice: OnSlice = lambda count: None,
) -> Findings:
    """Label every slice of a scan.

    Args:
        model: the network.
        slices: (z, slice), slice (Y, X) int16 HU, in ascending or descending order of z.
        spacing_zyx_mm: distance of slices, rows and columns.
        labels: (Z, Y, X), zeros; receives the labels 0..4. May be a view of any strides.
        batch_size: slices a batch; None chooses from the free memory.
        on_slice: called with the number of slices done since the last call.

    Raises:
        SegmentError: not even one slice fits into memory.
    """
    begin = time.perf_counter()
    grid = network_grid(labels.shape[1:], spacing_zyx_mm[1:], model.config.spacing_mm)
    findings = Findings(batch_size=batch_size or choose_batch_size(model, grid, free_memory(model.device)))
    labelling = _Labelling(model, Plan.of(len(labels), spacing_zyx_mm[0]), grid, labels, findings, on_slice)
    extents_mm = [n * mm for n, mm in zip(labels.shape[1:], spacing_zyx_mm[1:], strict=True)]
    grid_mm = [extent / n for extent, n in zip(extents_mm, grid, strict=True)]
    anchors = _anchors(model, slices, spacing_zyx_mm, labelling)
    for _, chunk in groupby(anchors, key=lambda anchor: labelling.plan.chunk(anchor.z)):
        labelling.take(list(chunk), grid_mm)
    findings.network_seconds = time.perf_counter() - begin - findings.read_seconds
    return findings


def _anchors(
    model: Model, slices: Iterable[tuple[int, NDArray[np.int16]]], spacing_zyx_mm: Sequence[float], run: _Labelling
) -> Iterator[Anchor]:
    """The network's inputs of all anchors, in the order of the slices."""
    findings, low_hu = run.findings, model.config.window_hu[0]
    enough_pixels = BODY_MM2 / (spacing_zyx_mm[1] * spacing_zyx_mm[2])

    def prepared() -> Iterator[tuple[int, tuple[Tensor, bool]]]:
        source = iter(slices)
        while True:
            asked = time.perf_counter()
            item = next(source, None)
            findings.read_seconds += time.perf_counter() - asked
            if item is None:
                return
            z, plane = item
            findings.lowest_hu = min(findings.lowest_hu, int(plane.min()))
            findings.highest_hu = max(findings.highest_hu, int(plane.max()))
            has_body = np.count_nonzero(plane > low_hu) >= enough_pixels
            yield z, (_prepare(plane, model, run.grid), bool(has_body))

    step, channels = neighbour_step(spacing_zyx_mm[0], model.config.neighbour_mm), model.config.channels_in
    for z, rows in with_neighbours(prepared(), step, channels, run.plan.depth):
        if run.plan.is_anchor(z):
            has_body = rows[channels // 2][1]
            yield Anchor(z, torch.cat([plane for plane, _ in rows]) if has_body else None)


def _prepare(plane: NDArray[np.int16], model: Model, grid: Sequence[int]) -> Tensor:
    """A slice (Y, X) HU -> (1, h, w) network input on the device; in float32 up to here, because HU are resampled."""
    hounsfield = torch.from_numpy(plane).to(model.device, non_blocking=True).float()
    windowed = window(hounsfield, *model.config.window_hu)
    return network_input(to_grid(windowed[None, None], grid))[0].to(model.dtype)


class _Labelling:
    """Takes anchors chunk by chunk, lets the network see scouts, then what lies between, and writes the labels."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        grid: tuple[int, int],
        labels: NDArray[np.uint8],
        findings: Findings,
        on_slice: OnSlice,
    ) -> None:
        self.model, self.plan, self.grid, self.labels = model, plan, grid, labels
        self.findings, self.on_slice = findings, on_slice
        self.waiting: dict[int, tuple[Tensor, Box]] = {}  # inputs that were not seen yet, cut to the body's box
        self.logits: dict[int, Tensor] = {}  # of anchors that were seen, (1, 5, h / 4, w / 4), on the whole grid
        self.shown: set[int] = set()  # anchors that show an organ
        self.scouted: set[int] = set()
        self.gaps = plan.gaps()  # between scouts; not dealt with yet

    def take(self, chunk: Sequence[Anchor], grid_mm: Sequence[float]) -> None:
        """Label what can be labelled now that these anchors are here; gaps at the chunk's end may have to wait."""
        middle = self.model.config.channels_in // 2
        bodies = [anchor.image[middle] for anchor in chunk if anchor.image is not None]
        if bodies:
            box = body_box(torch.stack(bodies), grid_mm, self.model.config.window_hu)
            self.waiting |= {a.z: (a.image[:, *box].clone(), box) for a in chunk if a.image is not None}
        scouts = [anchor.z for anchor in chunk if self.plan.is_scout(anchor.z)]
        self._see(scouts)
        self.scouted.update(scouts)
        ready = [gap for gap in self.gaps if self.scouted.issuperset(gap)]
        active = [(low, high) for low, high in ready if {low, high} & self.shown]
        self._see([z for low, high in active for z in range(low + 1, high)])
        for low, high in active:
            self._interpolate(low, high)
        for low, high in ready:
            self.gaps.remove((low, high))
            for z in range(low + 1, high):
                self.waiting.pop(z, None)
        ends = {z for gap in self.gaps for z in gap}
        self.logits = {z: logits for z, logits in self.logits.items() if z in ends}
        self.on_slice(len(scouts) + sum(high - low - 1 for low, high in ready))

    def _see(self, rows: Sequence[int]) -> None:
        """Run the network on those of the slices that wait for it, in batches of slices with the same box."""
        found = [z for z in rows if z in self.waiting]
        for box, group in groupby(found, key=lambda z: self.waiting[z][1]):
            alike = list(group)
            while alike:
                # Even batches, since a small rest would cost more a slice; fewer slices where memory ran out.
                batch = alike[: -(-len(alike) // -(-len(alike) // self.findings.batch_size))]
                images = torch.stack([self.waiting[z][0] for z in batch])
                try:
                    logits = self._on_grid(refined_logits(self.model, images), box)
                except NoMemoryError:
                    if len(batch) == 1:
                        raise
                    self.findings.batch_size = len(batch) // 2
                    continue
                self.shown |= self._label(batch, logits)
                self.logits |= {z: one[None] for z, one in zip(batch, logits, strict=True)}
                self.findings.network_slices += len(batch)
                for z in batch:
                    del self.waiting[z]
                del alike[: len(batch)]

    def _on_grid(self, logits: Tensor, box: Box) -> Tensor:
        """Logits of a box -> of the whole grid: background around it."""
        whole = logits.new_zeros((*logits.shape[:2], *(side // STRIDE for side in self.grid)))
        whole[:, 0] = SURE
        whole[:, :, *(slice(part.start // STRIDE, part.stop // STRIDE) for part in box)] = logits
        return whole

    def _label(self, rows: Sequence[int], logits: Tensor) -> set[int]:
        """Write the labels of slices with these logits (N, 5, h / 4, w / 4), and return those that show an organ."""
        # The largest value's index, for argmax is many times slower on a CPU along this axis.
        found = [to_scan(one[None], self.labels.shape[1:]).max(1)[1].byte() for one in logits]
        planes = torch.cat(found).cpu().numpy()
        for z, plane in zip(rows, planes, strict=True):
            self.labels[z] = plane
        return {z for z, plane in zip(rows, planes, strict=True) if plane.any()}

    def _interpolate(self, low: int, high: int) -> None:
        """Label the slices between the anchors of a gap from their logits; where there was no body is background."""
        for before, after in pairwise(z for z in range(low, high + 1) if self.plan.is_anchor(z)):
            if after - before == 1 or not {before, after} & self.shown:
                continue
            some = self.logits[before if before in self.logits else after]
            nothing = self._on_grid(some[:, :, :0, :0], (slice(0, 0), slice(0, 0)))
            first, last = (self.logits.get(z, nothing) for z in (before, after))
            for z in range(before + 1, after):
                self._label([z], torch.lerp(first, last, (z - before) / (after - before)))
