"""The streaming loop: slices -> inputs -> logits -> labels, in memory that does not grow with the scan.

Shapes: C input channels, h x w the network's grid, 5 classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..strides import LOGITS_STRIDE
from .confidence import Confidence
from .grid import to_scan
from .intensities import Intensities
from .plan import Plan, neighbour_step, with_neighbours
from .predictor import Predictor
from .preprocess import Box, body_box

OnSlice = Callable[[int], None]  # called with the number of slices done since the last call
FindBox = Callable[[Tensor, Sequence[float], Sequence[float]], Box]  # see `body_box`

BODY_MM2 = 1000.0  # a slice with less than 10 cm2 above the window's low end holds no abdomen, not even a newborn's
BACKGROUND_LOGIT = 10.0  # outside the body's box, where organs have 0


class Witness(Protocol):
    """Somebody who is shown the slices as they pass, and their labels as soon as they are known."""

    def see(self, z: int, plane: NDArray[np.int16]) -> None:
        """Take a slice (Y, X) of HU."""
        ...

    def labelled(self, z: int, labels: NDArray[np.uint8]) -> None:
        """Take the labels (Y, X) of a slice that was seen. May come twice, with the same labels."""
        ...

    def finish(self, labels_zyx: NDArray[np.uint8]) -> None:
        """Take all labels (Z, Y, X), when no slice is left."""
        ...


@dataclass
class Findings:
    """What the loop saw on its way.

    Attributes:
        network_slices: slices that went through the network; the others hold no body, lie where scouts show no organ,
            or are thin and interpolated.
        intensities: what the scan's values look like.
        confidence: how sure the network was.
        read_seconds: time spent waiting for slices.
        network_seconds: all other time.
    """

    network_slices: int = 0
    intensities: Intensities = field(default_factory=Intensities)
    confidence: Confidence = field(default_factory=Confidence)
    read_seconds: float = 0.0
    network_seconds: float = 0.0


@dataclass
class Anchor:
    """A slice that may go through the network, and what is known of it so far.

    Attributes:
        z: its number.
        image: its input (C, height, width), cut to `box`; None where it holds no body, and once the network saw it.
        box: what of the grid the network looks at.
        logits: (1, 5, h / 4, w / 4) on the whole grid, once the network saw it.
        shows_organ: whether a label other than background was found.
    """

    z: int
    image: Tensor | None
    box: Box = (slice(0, 0), slice(0, 0))
    logits: Tensor | None = None
    shows_organ: bool = False


@torch.inference_mode()
def label_slices(
    predictor: Predictor,
    slices: Iterable[tuple[int, NDArray[np.int16]]],
    spacing_zyx_mm: Sequence[float],
    labels: NDArray[np.uint8],
    on_slice: OnSlice = lambda count: None,
    plan: Plan | None = None,
    find_box: FindBox = body_box,
    witness: Witness | None = None,
) -> Findings:
    """Label every slice of a scan.

    Args:
        predictor: the network.
        slices: (z, slice), slice (Y, X) int16 HU, in ascending or descending order of z.
        spacing_zyx_mm: distance of slices, rows and columns.
        labels: (Z, Y, X), zeros; receives the labels 0..4. May be a view of any strides.
        on_slice: called with the number of slices done since the last call.
        plan: which slices the network sees; None: `Plan.of` the scan.
        find_box: what of some slices' inputs it sees.
        witness: is shown every slice and its labels.

    Raises:
        NoMemoryError: not even one slice fits into memory.
    """
    begin = time.perf_counter()
    findings = Findings()
    labelling = _Labelling(
        predictor, plan or Plan.of(len(labels), spacing_zyx_mm[0]), spacing_zyx_mm, labels, findings, find_box, witness
    )
    anchors = labelling.anchors_of(slices)
    for _, chunk in groupby(anchors, key=lambda anchor: labelling.plan.chunk(anchor.z)):
        on_slice(labelling.take(list(chunk)))
    if witness is not None:
        witness.finish(labels)
    findings.network_seconds = time.perf_counter() - begin - findings.read_seconds
    return findings


@dataclass
class _Labelling:
    """Takes anchors chunk by chunk, shows the network scouts first, then what lies between, and writes the labels."""

    predictor: Predictor
    plan: Plan
    spacing_zyx_mm: Sequence[float]
    labels: NDArray[np.uint8]
    findings: Findings
    find_box: FindBox
    witness: Witness | None = None

    def __post_init__(self) -> None:
        self.anchors: dict[int, Anchor] = {}
        self.gaps = self.plan.gaps()  # not dealt with yet

    def anchors_of(self, slices: Iterable[tuple[int, NDArray[np.int16]]]) -> Iterator[Anchor]:
        """The anchors among the slices, with their whole inputs, in the order of the slices."""
        config = self.predictor.config
        step, channels = neighbour_step(self.spacing_zyx_mm[0], config.neighbour_mm), config.channels_in
        for z, rows in with_neighbours(self._prepared(slices), step, channels, self.plan.depth):
            if self.plan.is_anchor(z):
                has_body = rows[channels // 2][1]
                yield Anchor(z, torch.stack([plane for plane, _ in rows]) if has_body else None)

    def _prepared(self, slices: Iterable[tuple[int, NDArray[np.int16]]]) -> Iterator[tuple[int, tuple[Tensor, bool]]]:
        """Each z with its slice as an input channel, and whether it holds a body."""
        findings, low_hu = self.findings, self.predictor.config.window_hu[0]
        enough_pixels = BODY_MM2 / (self.spacing_zyx_mm[1] * self.spacing_zyx_mm[2])
        source = iter(slices)
        while True:
            asked = time.perf_counter()
            item = next(source, None)
            findings.read_seconds += time.perf_counter() - asked
            if item is None:
                return
            z, plane = item
            findings.intensities.add(plane)
            if self.witness is not None:
                self.witness.see(z, plane)
            has_body = np.count_nonzero(plane > low_hu) >= enough_pixels
            yield z, (self.predictor.prepare(plane), bool(has_body))

    def take(self, chunk: Sequence[Anchor]) -> int:
        """Label what these anchors make possible; a gap at the chunk's end may have to wait for the next chunk.

        Returns:
            How many slices are done that were not before.
        """
        self._cut_to_body(chunk)
        self.anchors |= {anchor.z: anchor for anchor in chunk}
        scouts = [anchor.z for anchor in chunk if self.plan.is_scout(anchor.z)]
        self._see(scouts)
        ready = [(low, high) for low, high in self.gaps if low in self.anchors and high in self.anchors]
        active = [gap for gap in ready if any(self.anchors[scout].shows_organ for scout in gap)]
        self._see([z for low, high in active for z in range(low + 1, high)])
        for low, high in active:
            self._interpolate(low, high)
        if self.witness is not None:
            for z in (z for low, high in ready for z in range(low, high + 1)):
                self.witness.labelled(z, self.labels[z])
        self.gaps = [gap for gap in self.gaps if gap not in ready]
        self.anchors = {
            z: anchor for z, anchor in self.anchors.items() if any(low <= z <= high for low, high in self.gaps)
        }
        return len(scouts) + sum(high - low - 1 for low, high in ready)

    def _cut_to_body(self, chunk: Sequence[Anchor]) -> None:
        """Cut the anchors' inputs to the box that holds the body in all of them."""
        extents_mm = [n * mm for n, mm in zip(self.labels.shape[1:], self.spacing_zyx_mm[1:], strict=True)]
        grid_mm = [extent / n for extent, n in zip(extents_mm, self.predictor.grid, strict=True)]
        config = self.predictor.config
        middles = [anchor.image[config.channels_in // 2] for anchor in chunk if anchor.image is not None]
        if not middles:
            return
        box = self.find_box(torch.stack(middles), grid_mm, config.window_hu)
        for anchor in chunk:
            if anchor.image is not None:
                anchor.image, anchor.box = anchor.image[:, *box].clone(), box  # a view would keep the rest alive

    def _see(self, rows: Sequence[int]) -> None:
        """Run the network on those of the anchors that it has not seen, and write their labels."""
        waiting = [anchor for z in rows if (anchor := self.anchors.get(z)) and anchor.image is not None]
        for box, group in groupby(waiting, key=lambda anchor: anchor.box):
            alike = list(group)
            images = [anchor.image for anchor in alike if anchor.image is not None]
            for anchor, logits in zip(alike, self.predictor.logits(images), strict=True):
                self.findings.confidence.add(logits)
                anchor.logits, anchor.image = self._on_grid(logits, box)[None], None
                anchor.shows_organ = self._label(anchor.z, anchor.logits)
                self.findings.network_slices += 1

    def _on_grid(self, logits: Tensor, box: Box) -> Tensor:
        """Logits (5, ...) of a box -> (5, h / 4, w / 4) of the whole grid: background around it."""
        whole = logits.new_zeros((len(logits), *(side // LOGITS_STRIDE for side in self.predictor.grid)))
        whole[0] = BACKGROUND_LOGIT
        whole[:, *(slice(part.start // LOGITS_STRIDE, part.stop // LOGITS_STRIDE) for part in box)] = logits
        return whole

    def _label(self, z: int, logits: Tensor) -> bool:
        """Write the labels of a slice with these logits (1, 5, h / 4, w / 4); whether any is an organ's."""
        # The largest value's index, for argmax is many times slower on a CPU along this axis.
        plane = to_scan(logits, self.labels.shape[1:]).max(1)[1].byte()[0].cpu().numpy()
        self.labels[z] = plane
        return bool(plane.any())

    def _interpolate(self, low: int, high: int) -> None:
        """Label the slices between the anchors of a gap from their logits; where there was no body is background."""
        for before, after in pairwise(z for z in range(low, high + 1) if self.plan.is_anchor(z)):
            first, last = self.anchors[before], self.anchors[after]
            if after - before == 1 or not (first.shows_organ or last.shows_organ):
                continue
            some = first.logits if first.logits is not None else last.logits
            assert some is not None  # one of them shows an organ
            nothing = self._on_grid(some[0, :, :0, :0], (slice(0, 0), slice(0, 0)))[None]
            start, end = (nothing if anchor.logits is None else anchor.logits for anchor in (first, last))
            for z in range(before + 1, after):
                self._label(z, torch.lerp(start, end, (z - before) / (after - before)))
