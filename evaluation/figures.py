"""The paper's figures: violins of the scores, cases side by side, agreement of volumes; and a scan in three planes."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import NDArray

from app.hounsfield import WINDOW
from app.organs import IGNORE, ORGANS, Organ
from app.results.planes import around_organs, best_plane
from app.volumes import open_volume
from evaluation.accuracy import CaseScores
from evaluation.labels import check_same_grid, read_labels
from evaluation.metrics import Protocol
from evaluation.summary import MEASURES, values

ORGAN_COLORS = {organ: "#{:02x}{:02x}{:02x}".format(*organ.rgb) for organ in ORGANS}
FACE = "white"
mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def violins(results: Sequence[CaseScores], protocol: Protocol) -> Figure:
    """DSC and NSD per organ, a violin each with every case as a dot."""
    figure = Figure(figsize=(9, 3.8), layout="constrained", facecolor=FACE)
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        samples = [values(results, organ, measure) for organ in ORGANS]
        parts = axes.violinplot(samples, showmedians=True, widths=0.8)
        for body, organ in zip(parts["bodies"], ORGANS, strict=True):
            body.set_facecolor(ORGAN_COLORS[organ])
            body.set_alpha(0.45)
        for name in ("cmedians", "cmins", "cmaxes", "cbars"):
            parts[name].set_color("#444444")
            parts[name].set_linewidth(1)
        for place, (organ, sample) in enumerate(zip(ORGANS, samples, strict=True), start=1):
            spread = np.linspace(-0.08, 0.08, len(sample)) if len(sample) > 1 else np.zeros(1)
            axes.scatter(place + spread, sample, s=14, color=ORGAN_COLORS[organ], edgecolor="white", linewidth=0.5)
        axes.set_xticks(range(1, len(ORGANS) + 1), [organ.key for organ in ORGANS])
        axes.set_ylim(min(0.5, min(s.min() for s in samples) - 0.05), 1.01)
        axes.grid(axis="y", color="#dddddd")
        axes.set_axisbelow(True)
        axes.set_title(f"{measure}, {len(results)} cases" + (f" ({protocol.name})" if measure == "NSD" else ""))
    return figure


def bland_altman(results: Sequence[CaseScores]) -> Figure:
    """Organ volumes: difference over mean, with the mean difference and 1.96 standard deviations."""
    rows = -(-len(ORGANS) // 2)
    figure = Figure(figsize=(9, 2.8 * rows), layout="constrained", facecolor=FACE)
    for place, organ in enumerate(ORGANS, start=1):
        axes = figure.add_subplot(rows, 2, place)
        reference = np.array([case.reference_ml[organ] for case in results])
        prediction = np.array([case.prediction_ml[organ] for case in results])
        difference, mean = prediction - reference, (prediction + reference) / 2
        spread = 1.96 * difference.std(ddof=1) if len(difference) > 1 else 0.0
        axes.scatter(mean, difference, s=22, color=ORGAN_COLORS[organ], edgecolor="white", linewidth=0.5, zorder=3)
        for level, style in ((difference.mean(), "-"), *((difference.mean() + s * spread, "--") for s in (-1, 1))):
            axes.axhline(level, color="#444444", linestyle=style, linewidth=1)
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.set_title(f"{organ.key}: {difference.mean():+.0f} ± {spread:.0f} ml")
        axes.set_xlabel("mean of prediction and reference (ml)")
        axes.set_ylabel("prediction - reference (ml)")
    return figure


def case_slices(
    image_path: pathlib.Path, case: CaseScores
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8], int, float]:
    """Image (HU), reference and prediction of a case, (Y, X) each, at the slice where most voxels disagree.

    Where none does, the slice with most organ.

    Returns:
        The three slices, the slice's number, and the height of a pixel over its width.

    Raises:
        VolumeError: the image cannot be read.
        LabelError: it does not lie on the reference's grid.
    """
    volume = open_volume(image_path)
    reference, geometry = read_labels(case.reference, [*Organ, IGNORE])
    check_same_grid(image_path, volume.geometry, geometry)
    prediction = read_labels(case.prediction, list(Organ))[0] if case.prediction else np.zeros_like(reference)
    disagreement = ((reference != prediction) & (reference != IGNORE)).sum(axis=(1, 2))
    z_most = int(np.argmax(disagreement if disagreement.any() else (prediction > 0).sum(axis=(1, 2))))
    slices = volume.slices()
    plane = next(plane for z, plane in slices if z == z_most)
    slices.close()
    _, height, width = volume.geometry.spacing_zyx_mm
    return plane, reference[z_most], prediction[z_most], z_most, height / width


def panels(results: Sequence[CaseScores], images: Mapping[str, pathlib.Path]) -> Figure:
    """Image, reference and prediction of the worst, the median and the best case by mean DSC.

    Args:
        results: of cases that have an image each.
        images: case -> its scan.

    Raises:
        VolumeError: an image cannot be read.
        LabelError: it does not lie on its reference's grid.
    """
    ranked = sorted(results, key=lambda case: float(np.mean([case.scores[organ].dice for organ in ORGANS])))
    chosen = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    colors = ListedColormap(["none", *(ORGAN_COLORS[organ] for organ in ORGANS)])
    figure = Figure(figsize=(9, 2.9 * len(chosen) + 0.4), layout="constrained", facecolor=FACE)
    for row, (word, case) in zip(figure.subplots(len(chosen), 3), chosen.items(), strict=True):
        plane, reference, prediction, z, aspect = case_slices(images[case.name], case)
        dice = ", ".join(f"{case.scores[organ].dice:.2f}" for organ in ORGANS)
        titles = (f"{word}: {case.name}, slice {z}", "reference", f"prediction, DSC {dice}")
        for axes, labels, title in zip(row, (None, reference, prediction), titles, strict=True):
            axes.imshow(plane, "gray", vmin=WINDOW[0], vmax=WINDOW[1], aspect=aspect)
            if labels is not None:
                shown = np.where(labels == IGNORE, 0, labels)
                axes.imshow(shown, colors, vmin=0, vmax=len(ORGANS), alpha=0.6, aspect=aspect, interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    legend = [Patch(color=ORGAN_COLORS[organ], label=organ.key) for organ in ORGANS]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def three_planes(scan: pathlib.Path, mask: pathlib.Path) -> Figure:
    """A scan in axial, coronal and sagittal planes through its organs, with the organs' outlines and a legend."""
    volume = open_volume(scan)
    labels, geometry = read_labels(mask, list(Organ))
    check_same_grid(mask, geometry, volume.geometry)
    hounsfield = np.empty(labels.shape, np.int16)
    for z, plane in volume.slices():
        hounsfield[z] = plane
    spacing = volume.geometry.spacing_zyx_mm
    box = around_organs(labels, spacing)
    hounsfield, labels = hounsfield[box], labels[box]
    extents = [n * mm for n, mm in zip(labels.shape, spacing, strict=True)]
    cuts = [best_plane(labels, axis) for axis in range(3)]
    ratios = [extents[2] / extents[1], extents[2] / extents[0], extents[1] / extents[0]]
    figure = Figure(figsize=(12, 12 / sum(ratios) + 0.6), layout=ConstrainedLayoutEngine(h_pad=0.08), facecolor="black")
    axes_row = figure.subplots(1, 3, width_ratios=ratios)
    for axis, (axes, title) in enumerate(zip(axes_row, ("axial", "coronal", "sagittal"), strict=True)):
        rows, columns = (spacing[a] for a in range(3) if a != axis)
        origin = "upper" if axis == 0 else "lower"  # z grows towards the head
        low, high = WINDOW
        image, shown = (np.take(array, cuts[axis], axis) for array in (hounsfield, labels))
        axes.imshow(image, "gray", vmin=low, vmax=high, aspect=rows / columns, origin=origin)
        for organ in ORGANS:
            if (shown == organ).any():
                axes.contour(shown == organ, [0.5], colors=ORGAN_COLORS[organ], linewidths=1.6)
        axes.set_title(title, color="white", pad=8)
        axes.axis("off")
    legend = [Patch(color=ORGAN_COLORS[organ], label=organ.key) for organ in ORGANS]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, labelcolor="white")
    return figure
