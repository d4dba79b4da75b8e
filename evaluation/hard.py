"""Scans made harder, and what every model makes of them beside the scans as they are.

    clean           the scan as it is
    3mm-pixels      each pixel is the mean over 3 x 3 mm
    10mm-slices     each slice is the mean over 10 mm
    15mm-apart      slices as they are, 15 mm apart; the others are left out
    1mm-slices      slices interpolated to 1 mm, each with noise of its own, of 25 HU
    noise-40hu      Gaussian noise with a standard deviation of 40 HU, correlated over two pixels of the slice
    half-contrast   every HU value lies half as far from the mean of the soft tissue; air stays air

A voxel's label is the one that covers most of it, or lies nearest. A variant depends on nothing but the scan and its
name.
"""

from __future__ import annotations

import datetime
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from app.hounsfield import WINDOW
from app.organs import IGNORE, ORGANS, Organ
from app.segmenter import Segmenter
from app.version import __version__
from app.volumes import open_volume
from app.whole_file import whole_file
from evaluation.labels import check_same_grid, read_labels
from evaluation.machine import processor
from evaluation.metrics import Protocol, Score, score_case
from evaluation.names import Labelled
from evaluation.tables import table

PIXEL_MM, SLICE_MM, APART_MM, THIN_MM = 3.0, 10.0, 15.0, 1.0
NOISE_HU, THIN_NOISE_HU = 40.0, 25.0
NOISE_SIGMA = 1.0  # pixels; white noise filtered by it correlates as exp(-d^2 / 4), that is 1/e at two pixels
CONTRAST = 0.5

Scores = dict[str, dict[str, dict[Organ, Score]]]  # variant -> case -> scores


@dataclass(frozen=True)
class LabelledVolume:
    """A scan and its labels, (Z, Y, X) in LPS order.

    Attributes:
        name: of the case.
        hounsfield: int16.
        labels: uint8, 255 where nobody annotated.
        affine: (4, 4), (x, y, z) -> patient RAS, mm.
    """

    name: str
    hounsfield: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]

    @classmethod
    def read(cls, labelled: Labelled) -> LabelledVolume:
        """Read both files.

        Raises:
            VolumeError: the scan cannot be read.
            LabelError: its labels cannot, or do not lie on its grid.
        """
        name, image, label = labelled
        volume = open_volume(image)
        labels, geometry = read_labels(label, [*Organ, IGNORE])
        check_same_grid(label, geometry, volume.geometry)
        hounsfield = np.empty(labels.shape, np.int16)
        for z, plane in volume.slices():
            hounsfield[z] = plane
        return cls(name, hounsfield, labels, volume.geometry.oriented_affine)

    @property
    def slice_mm(self) -> float:
        """Distance of the slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    def with_slices(self, hounsfield: NDArray[np.int16], labels: NDArray[np.uint8], step: float) -> LabelledVolume:
        """Other slices from the first one on, `step` distances of these slices apart."""
        affine = self.affine @ np.diag([1.0, 1.0, step, 1.0])
        return replace(self, hounsfield=hounsfield, labels=labels, affine=affine)

    def write(self, folder: pathlib.Path) -> Labelled:
        """Write both files into a folder in the FLARE / nnU-Net layout."""
        image, label = folder / "imagesTr" / f"{self.name}_0000.nii.gz", folder / "labelsTr" / f"{self.name}.nii.gz"
        for path, array in ((image, self.hounsfield), (label, self.labels)):
            path.parent.mkdir(parents=True, exist_ok=True)
            nifti = nib.Nifti1Image(array.transpose(2, 1, 0), self.affine)
            nifti.header.set_xyzt_units("mm")
            with whole_file(path) as stream:
                stream.write(gzip.compress(nifti.to_bytes(), 1, mtime=0))
        return self.name, image, label


def averaged(volume: LabelledVolume, wanted_xyz_mm: Sequence[float]) -> LabelledVolume:
    """The volume with voxels of another size, each the mean of what it covers; no axis gets smaller voxels.

    What is left over at the far ends, less than a voxel, is dropped.
    """
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    factors = np.maximum(1.0, np.array(wanted_xyz_mm) / spacing)
    weights = [_box_weights(n, factor) for n, factor in zip(volume.labels.shape, factors[::-1], strict=True)]
    affine = volume.affine @ np.diag([*factors, 1.0])
    affine[:3, 3] += volume.affine[:3, :3] @ (factors - 1) / 2  # from the first voxel's middle to the new one's
    hounsfield = np.rint(_means(volume.hounsfield, weights)).astype(np.int16)
    most, labels = np.zeros(hounsfield.shape, np.float32), np.zeros(hounsfield.shape, np.uint8)
    for value in np.unique(volume.labels):  # background first, so that half an organ is the organ
        share = _means(volume.labels == value, weights)
        labels[share >= most - 1e-5] = value
        most = np.maximum(share, most)
    return replace(volume, hounsfield=hounsfield, labels=labels, affine=affine)


def _box_weights(n: int, factor: float) -> NDArray[np.float32]:
    """(m, n): how much each of n voxels adds to m that are `factor` times as large."""
    low = np.arange(max(1, int(n / factor + 1e-6)))[:, None] * factor
    voxels = np.arange(n)
    covered = np.clip(np.minimum(low + factor, voxels + 1) - np.maximum(low, voxels), 0, None)
    weights: NDArray[np.float32] = (covered / covered.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _means(array: NDArray[Any], weights: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The array, float32, with the weights of each axis applied; an axis that stays costs nothing."""
    means = array.astype(np.float32)
    for axis, matrix in enumerate(weights):
        if len(matrix) != matrix.shape[1]:
            means = np.moveaxis(np.tensordot(matrix, means, (1, axis)), 0, axis)
    return means


def coarse_pixels(volume: LabelledVolume) -> LabelledVolume:
    """Pixels of 3 mm."""
    return averaged(volume, (PIXEL_MM, PIXEL_MM, 0))


def thick_slices(volume: LabelledVolume) -> LabelledVolume:
    """Slices of 10 mm."""
    return averaged(volume, (0, 0, SLICE_MM))


def slices_apart(volume: LabelledVolume) -> LabelledVolume:
    """Every nth slice, about 15 mm apart; volumes of such slices hold no neighbours worth the name."""
    step = max(1, round(APART_MM / volume.slice_mm))
    return volume.with_slices(volume.hounsfield[::step], volume.labels[::step], step)


def thin_slices(volume: LabelledVolume) -> LabelledVolume:
    """Slices of 1 mm, as noisy as thin slices are; the scan's own where they are no thicker."""
    step = min(1.0, THIN_MM / volume.slice_mm)
    places = np.arange(0, len(volume.hounsfield) - 1 + 1e-6, step)
    before = np.minimum(places.astype(int), max(0, len(volume.hounsfield) - 2))
    after = np.minimum(before + 1, len(volume.hounsfield) - 1)
    hounsfield = np.empty((len(places), *volume.hounsfield.shape[1:]), np.int16)
    for z, (i, j, share) in enumerate(zip(before, after, places - before, strict=True)):
        hounsfield[z] = np.rint((1 - share) * volume.hounsfield[i] + share * volume.hounsfield[j])
    labels = volume.labels[np.rint(places).astype(int)]
    return noisy(volume.with_slices(hounsfield, labels, step), THIN_NOISE_HU)


def noisy(volume: LabelledVolume, noise_hu: float = NOISE_HU) -> LabelledVolume:
    """Noise of this standard deviation, correlated within a slice, seeded by the case's name."""
    rng = np.random.default_rng(zlib.crc32(volume.name.encode()))
    hounsfield = np.empty_like(volume.hounsfield)
    for z, plane in enumerate(volume.hounsfield):
        noise = gaussian_filter(rng.standard_normal(plane.shape), NOISE_SIGMA, mode="wrap")
        hounsfield[z] = np.rint(plane + noise_hu / noise.std() * noise)
    return replace(volume, hounsfield=hounsfield)


def half_contrast(volume: LabelledVolume) -> LabelledVolume:
    """Half the contrast about the mean of the soft tissue, which is what lies inside the network's window."""
    hounsfield = volume.hounsfield
    soft = hounsfield[(hounsfield > WINDOW[0]) & (hounsfield < WINDOW[1])]
    mean = float(soft.mean()) if soft.size else 0.0
    changed = np.rint(mean + CONTRAST * (hounsfield - mean)).astype(np.int16)
    return replace(volume, hounsfield=np.where(hounsfield > WINDOW[0], changed, hounsfield))


VARIANTS: dict[str, Callable[[LabelledVolume], LabelledVolume]] = {
    "clean": lambda volume: volume,
    "3mm-pixels": coarse_pixels,
    "10mm-slices": thick_slices,
    "15mm-apart": slices_apart,
    "1mm-slices": thin_slices,
    "noise-40hu": noisy,
    "half-contrast": half_contrast,
}


def make_variants(scans: Sequence[Labelled], folder: pathlib.Path) -> dict[str, list[Labelled]]:
    """Write every variant of the scans into a folder of its name, in the FLARE / nnU-Net layout.

    Raises:
        VolumeError, LabelError: a file cannot be read.
    """
    made: dict[str, list[Labelled]] = {name: [] for name in VARIANTS}
    for labelled in scans:
        volume = LabelledVolume.read(labelled)
        for name, change in VARIANTS.items():
            made[name].append(change(volume).write(folder / name))
    return made


def score(segmenter: Segmenter, variants: Mapping[str, Sequence[Labelled]], protocol: Protocol) -> Scores:
    """Segment every variant of every scan and score it.

    Raises:
        AppError: a scan cannot be segmented.
    """
    scores: Scores = {variant: {} for variant in variants}
    every_scan = [(variant, scan) for variant, scans in variants.items() for scan in scans]
    for variant, (name, image, label) in tqdm(every_scan, segmenter.model.name, disable=None):
        reference, geometry = read_labels(label, [*Organ, IGNORE])
        prediction = geometry.orient(segmenter.segment(image))
        scores[variant][name] = score_case(reference, prediction, geometry.spacing_zyx_mm, protocol)
    return scores


def about(segmenters: Mapping[str, Segmenter], protocol: Protocol | None = None) -> dict[str, Any]:
    """What the scores depend on beside the scans; a protocol only where there are NSDs."""
    engines = {name: one.engine.about() for name, one in segmenters.items()}
    return {
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        **({"protocol": protocol.name} if protocol else {}),
        "models": {
            name: {
                "version": one.model.version,
                "sha256": dict(one.model.sha256),
                "device": engines[name].device_name,
                "precision": engines[name].precision,
            }
            for name, one in segmenters.items()
        },
    }


def as_json(facts: Mapping[str, Any], scores: Mapping[str, Scores]) -> str:
    """Everything, DSC and NSD of every case included."""
    plain = {
        model: {variant: {case: _plain(one) for case, one in cases.items()} for variant, cases in variants.items()}
        for model, variants in scores.items()
    }
    return json.dumps({**facts, "scores": plain}, indent=1) + "\n"


def _plain(scores: Mapping[Organ, Score]) -> dict[str, dict[str, float]]:
    return {organ.key: {"DSC": round(one.dice, 4), "NSD": round(one.surface_dice, 4)} for organ, one in scores.items()}


def mean_dice(cases: Mapping[str, Mapping[Organ, Score]], organ: Organ) -> float:
    """Of one organ over the cases, in percent."""
    return 100 * float(np.mean([one[organ].dice for one in cases.values()]))


def markdown(facts: Mapping[str, Any], scores: Mapping[str, Scores]) -> str:
    """Mean DSC of every model, variant and organ in percent, and in brackets how it differs from the clean one."""
    rows = []
    for model, variants in scores.items():
        for variant, cases in variants.items():
            means = {organ: mean_dice(cases, organ) for organ in ORGANS}
            changes = {organ: means[organ] - mean_dice(variants["clean"], organ) for organ in ORGANS}
            cells = [f"{means[o]:.1f}" + ("" if variant == "clean" else f" ({changes[o]:+.1f})") for o in ORGANS]
            rows.append([model, variant, *cells])
    names = ", ".join(next(iter(scores.values()))["clean"])
    weights = [
        f"`{name}` {model['version']} in {model['precision']} on {model['device']}, sha256 "
        + ", ".join(digest[:12] for digest in model["sha256"].values())
        for name, model in facts["models"].items()
    ]
    return (
        f"Version {facts['version']}, {facts['date']}, {facts['machine']}; {'; '.join(weights)}. Cases: {names}.\n\n"
        + table(["model", "variant", *(f"{organ.key} DSC (%)" for organ in ORGANS)], rows)
        + "\n"
    )
