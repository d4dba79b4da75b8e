"""The streaming loop: slices -> inputs -> logits -> labels, in memory that does not grow with the scan.

Shapes: C input channels, K labels of the model, h x w the network's grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import ModelConfig
from ..engines import Array, Box, Session
from ..organs import Organ
from ..strides import LOGITS_STRIDE
from .body import body_box
from .confidence import Confidence
from .intensities import Intensities
from .plan import Plan, neighbour_rows, neighbour_step, with_neighbours
from .slabs import slabs

OnSlice = Callable[[int], None]  # called with the number of slices done since the last call
FindBox = Callable[[NDArray[np.float32], Sequence[float], Sequence[float]], Box]  # see `body_box`

BODY_MM2 = 1000.0  # a slice with less than 10 cm2 above the window's low end holds no abdomen, not even a newborn's
BACKGROUND_LOGIT = 10.0  # outside the body's box, where organs have 0


class Witness(Protocol):
    """An observer of the slices as they pass, and of their labels as soon as they are known."""

    def see(self, z: int, plane: NDArray[np.int16]) -> None:
        """Take a slice (Y, X) of HU."""
        ...

    def labelled(self, z: int, labels: NDArray[np.uint8]) -> None:
        """Take the labels (Y, X) of a slice that was seen; once."""
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
        confidence: how sure the network is of every organ, see `Confidence`.
        read_seconds: time spent waiting for slices.
        network_seconds: all other time.
    """

    network_slices: int = 0
    intensities: Intensities = field(default_factory=Intensities)
    confidence: dict[Organ, float | None] = field(default_factory=dict)
    read_seconds: float = 0.0
    network_seconds: float = 0.0


@dataclass
class Anchor:
    """A slice that may go through the network, and what is known of it so far.

    Attributes:
        z: its number.
        channels: of its input, whole; None where it holds no body, and once the network saw it.
        box: what of the grid the network looks at.
        logits: (K, h / 4, w / 4), of the whole grid, once the network saw it.
        shows_organ: whether a label other than background was found.
    """

    z: int
    channels: tuple[Array, ...] | None
    box: Box = (slice(0, 0), slice(0, 0))
    logits: Array | None = None
    shows_organ: bool = False


@dataclass
class Labelling:
    """Labels a scan: takes anchors chunk by chunk, shows the network scouts first, then what lies between.

    Attributes:
        session: the network.
        config: of the model.
        spacing_zyx_mm: distance of slices, rows and columns.
        labels: (Z, Y, X), zeros; receives the values of `Organ`. May be a view of any strides.
        plan: which slices the network sees; None: `Plan.of` the scan.
        find_box: gives the part of some slices that the network sees.
        witness: is shown every slice and its labels.
    """

    session: Session
    config: ModelConfig
    spacing_zyx_mm: Sequence[float]
    labels: NDArray[np.uint8]
    plan: Plan | None = None
    find_box: FindBox = body_box
    witness: Witness | None = None

    def run(self, slices: Iterable[tuple[int, NDArray[np.int16]]], on_slice: OnSlice = lambda count: None) -> Findings:
        """Label every slice.

        Args:
            slices: (z, slice), slice (Y, X) int16 HU, in ascending or descending order of z.
            on_slice: called with the number of slices done since the last call.

        Raises:
            NoMemoryError: not even one slice fits into memory.
        """
        begin = time.perf_counter()
        self._plan = self.plan or Plan.of(len(self.labels), self.spacing_zyx_mm[0])
        self._values = np.array(self.config.organs, np.uint8)  # of the model's channels
        self._confidence = Confidence(self.config.organs[1:])
        self._findings = findings = Findings()
        self._anchors: dict[int, Anchor] = {}
        self._gaps = self._plan.gaps()  # not dealt with yet
        self._witnessed: set[int] = set()
        for _, chunk in groupby(self._anchors_of(slices), key=lambda anchor: self._plan.chunk(anchor.z)):
            on_slice(self._take(list(chunk)))
        if self.witness is not None:
            self.witness.finish(self.labels)
        findings.confidence = self._confidence.of_organs()
        findings.network_seconds = time.perf_counter() - begin - findings.read_seconds
        return findings

    def _anchors_of(self, slices: Iterable[tuple[int, NDArray[np.int16]]]) -> Iterator[Anchor]:
        """The anchors among the slices, with their inputs, in the order of the slices."""
        step = neighbour_step(self.spacing_zyx_mm[0], self.config.neighbour_mm)
        channels, depth = self.config.channels_in, self._plan.depth
        anchors = [z for z in range(depth) if self._plan.is_anchor(z)]
        shown = {row for z in anchors for row in neighbour_rows(z, step, channels, depth)}
        for z, rows in with_neighbours(self._prepared(slices, shown), step, channels, depth):
            if self._plan.is_anchor(z):
                has_body = rows[channels // 2][1]
                yield Anchor(z, tuple(plane for plane, _ in rows) if has_body else None)

    def _prepared(
        self, slices: Iterable[tuple[int, NDArray[np.int16]]], shown: Container[int]
    ) -> Iterator[tuple[int, tuple[Array, bool]]]:
        """Each z with its slab, or its slice, as an input channel, and whether it holds a body.

        Only what the network is shown, in any channel: nothing in place of the rest.
        """
        low_hu = self.config.window_hu[0]
        enough_pixels = BODY_MM2 / (self.spacing_zyx_mm[1] * self.spacing_zyx_mm[2])
        for z, slab in slabs(self._read(slices), self.spacing_zyx_mm, self._plan.depth):
            if z not in shown:
                yield z, (None, False)
                continue
            plane = slab()
            has_body = np.count_nonzero(plane > low_hu) >= enough_pixels
            yield z, (self.session.prepare(plane), bool(has_body))

    def _read(self, slices: Iterable[tuple[int, NDArray[np.int16]]]) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """The slices, which are timed, looked at and shown to the witness."""
        findings = self._findings
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
            yield z, plane

    def _take(self, chunk: Sequence[Anchor]) -> int:
        """Label every slice that these anchors determine; a gap at the chunk's end may have to wait for the next chunk.

        Returns:
            How many slices are done that were not before.
        """
        self._find_box(chunk)
        self._anchors |= {anchor.z: anchor for anchor in chunk}
        scouts = [anchor.z for anchor in chunk if self._plan.is_scout(anchor.z)]
        self._see(scouts)
        ready = [(low, high) for low, high in self._gaps if low in self._anchors and high in self._anchors]
        active = [gap for gap in ready if any(self._anchors[scout].shows_organ for scout in gap)]
        self._see([z for low, high in active for z in range(low + 1, high)])
        for low, high in active:
            self._interpolate(low, high)
        if self.witness is not None:
            for z in (z for low, high in ready for z in range(low, high + 1) if z not in self._witnessed):
                self._witnessed.add(z)
                self.witness.labelled(z, self.labels[z])
        self._gaps = [gap for gap in self._gaps if gap not in ready]
        self._anchors = {
            z: anchor for z, anchor in self._anchors.items() if any(low <= z <= high for low, high in self._gaps)
        }
        return len(scouts) + sum(high - low - 1 for low, high in ready)

    def _find_box(self, chunk: Sequence[Anchor]) -> None:
        """Find the box that holds the body in all of the anchors."""
        extents_mm = [n * mm for n, mm in zip(self.labels.shape[1:], self.spacing_zyx_mm[1:], strict=True)]
        grid_mm = [extent / n for extent, n in zip(extents_mm, self.session.grid, strict=True)]
        middle = self.config.channels_in // 2
        inputs = [self.session.to_numpy(anchor.channels[middle]) for anchor in chunk if anchor.channels is not None]
        if not inputs:
            return
        box = self.find_box(np.stack(inputs), grid_mm, self.config.window_hu)
        for anchor in chunk:
            anchor.box = box

    def _see(self, rows: Sequence[int]) -> None:
        """Run the network on those of the anchors that it has not seen, and write their labels."""
        waiting = [anchor for z in rows if (anchor := self._anchors.get(z)) and anchor.channels is not None]
        for box, group in groupby(waiting, key=lambda anchor: anchor.box):
            alike = list(group)
            images = [anchor.channels for anchor in alike if anchor.channels is not None]
            for anchor, logits in zip(alike, self.session.logits(images, box), strict=True):
                self._confidence.add(self.session.to_numpy(logits))
                anchor.logits, anchor.channels = self._on_grid(logits, box), None
                anchor.shows_organ = self._label(anchor.z, anchor.logits)
                self._findings.network_slices += 1

    def _on_grid(self, logits: Array | None, box: Box) -> Array:
        """Logits of a box -> (K, h / 4, w / 4) of the whole grid: background around it, or everywhere."""
        whole = self.session.zeros((len(self._values), *(side // LOGITS_STRIDE for side in self.session.grid)))
        whole[0] = BACKGROUND_LOGIT
        if logits is None:
            return whole
        whole[:, *(slice(part.start // LOGITS_STRIDE, part.stop // LOGITS_STRIDE) for part in box)] = logits
        return whole

    def _label(self, z: int, logits: Array) -> bool:
        """Write the labels of a slice with these logits (K, h / 4, w / 4); whether any is an organ's."""
        plane = self._values[self.session.labels(logits, self.labels.shape[1:])]
        self.labels[z] = plane
        return bool(plane.any())

    def _interpolate(self, low: int, high: int) -> None:
        """Label the slices between the anchors of a gap from their logits; an anchor without a body is background."""
        for before, after in pairwise(z for z in range(low, high + 1) if self._plan.is_anchor(z)):
            first, last = self._anchors[before], self._anchors[after]
            if after - before == 1 or not (first.shows_organ or last.shows_organ):
                continue
            start, end = (
                self._on_grid(None, anchor.box) if anchor.logits is None else anchor.logits for anchor in (first, last)
            )
            for z in range(before + 1, after):
                self._label(z, start + (end - start) * ((z - before) / (after - before)))
