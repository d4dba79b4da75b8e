"""A synthetic abdominal CT and its label, as NIfTI of any size, spacing and orientation.

It is a drawing, not anatomy: ellipsoids with the Hounsfield values of a portal venous scan, bent by a smooth random
warp so that no two seeds look alike. It serves the demo, the smoke tests, the benchmarks and, in a small
share, training.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

AIR, FAT, MUSCLE, LUNG, BONE, WATER = -1000.0, -100.0, 55.0, -850.0, 350.0, 10.0
BODY_RADII_MM = (165.0, 115.0)  # left-right, front-back
BODY_SPAN_MM = (380.0, 300.0, 260.0)  # what must fit into the field of view; a smaller one gets a smaller patient


@dataclass(frozen=True)
class Blob:
    """An ellipsoid in patient millimetres: +x left, +y posterior, +z superior, origin mid-body."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    hounsfield: float
    label: int = 0


BLOBS = (
    Blob((-85, -5, 130), (62, 80, 75), LUNG),
    Blob((85, -5, 130), (62, 80, 75), LUNG),
    Blob((0, 70, 0), (24, 20, 400), BONE),
    Blob((0, 88, 0), (9, 8, 400), 30.0),
    Blob((8, 42, 0), (11, 11, 400), 165.0),  # aorta
    Blob((-20, 40, 0), (12, 10, 400), 130.0),  # inferior vena cava
    Blob((55, -45, 55), (38, 34, 42), 30.0),  # stomach
    Blob((55, -62, 58), (22, 10, 28), -900.0),  # its gas
    Blob((25, -50, -70), (34, 25, 30), 40.0),  # bowel
    Blob((-45, -50, -85), (30, 24, 34), 25.0),
    Blob((90, -15, -65), (18, 22, 50), 15.0),
    Blob((-80, -5, 40), (72, 78, 68), 110.0, 1),
    Blob((-10, -48, 58), (50, 34, 34), 110.0, 1),
    Blob((-50, -40, 5), (14, 16, 20), WATER),  # gall bladder
    Blob((102, 38, 55), (32, 46, 48), 120.0, 3),
    Blob((-62, 58, -30), (26, 24, 54), 185.0, 2),
    Blob((64, 58, -18), (26, 24, 54), 185.0, 2),
    Blob((-44, 50, -30), (11, 9, 18), -20.0),  # renal sinus
    Blob((46, 50, -18), (11, 9, 18), -20.0),
    Blob((-25, 5, 0), (20, 17, 24), 95.0, 4),
    Blob((8, -2, 14), (26, 11, 13), 95.0, 4),
    Blob((45, 14, 26), (28, 11, 12), 95.0, 4),
)


@dataclass(frozen=True)
class Warp:
    """A smooth displacement of up to a few millimetres, the sum of a few random sine waves."""

    waves: NDArray[np.float32]  # (K, 3) wave vectors, radians per mm
    phases: NDArray[np.float32]  # (K, 3)
    amplitude_mm: float

    def displacement(self, axis: int, x: NDArray[np.float32], y: NDArray[np.float32], z: float) -> NDArray[np.float32]:
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
        for wave, phase in zip(self.waves, self.phases[:, axis], strict=True):
            total += np.sin(wave[0] * x + wave[1] * y + np.float32(wave[2] * z + phase))
        return total * np.float32(self.amplitude_mm / len(self.waves))


def make_phantom(
    shape: tuple[int, int, int] = (512, 512, 100),
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 3.0),
    seed: int = 0,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw a phantom.

    Args:
        shape: voxels along x, y, z.
        spacing_mm: voxel size along x, y, z.
        seed: chooses sizes, positions, Hounsfield values, shape and noise.

    Returns:
        Hounsfield units and labels 0..4, both (x, y, z) in LPS order, Fortran-contiguous.
    """
    rng = np.random.default_rng(seed)
    extents = np.array(shape) * spacing_mm
    scale = np.minimum(1.0, extents / BODY_SPAN_MM)  # a small field of view holds a small patient
    scale[:2] = scale[:2].min()
    jitter = rng.uniform(0.9, 1.1, (len(BLOBS), 3))
    moves = rng.uniform(-6, 6, (len(BLOBS), 3))
    levels = rng.normal(0, 6, len(BLOBS)) + rng.normal(0, 12) * np.array([b.label > 0 for b in BLOBS])
    warp = Warp(rng.normal(0, 0.025, (6, 3)).astype(np.float32), rng.uniform(0, 6.28, (6, 3)).astype(np.float32), 14.0)
    noise_hu = rng.uniform(8, 22)

    image = np.empty(shape, np.int16, order="F")
    label = np.zeros(shape, np.uint8, order="F")
    x0 = ((np.arange(shape[0], dtype=np.float32) - shape[0] / 2 + 0.5) * spacing_mm[0] / scale[0]).astype(np.float32)
    y0 = ((np.arange(shape[1], dtype=np.float32) - shape[1] / 2 + 0.5) * spacing_mm[1] / scale[1]).astype(np.float32)
    x0, y0 = x0[:, None], y0[None, :]
    for k in range(shape[2]):
        z0 = float((k - shape[2] / 2 + 0.5) * spacing_mm[2] / scale[2])
        x = x0 + warp.displacement(0, x0, y0, z0)
        y = y0 + warp.displacement(1, x0, y0, z0)
        radius = np.sqrt((x / BODY_RADII_MM[0]) ** 2 + (y / BODY_RADII_MM[1]) ** 2)
        plane = np.full(radius.shape, AIR, np.float32)
        plane[(np.abs(y0 - 140) < 8) & (np.abs(x0) < 190)] = -60.0  # the table
        plane[radius < 1.06] = FAT
        plane[radius < 0.96] = MUSCLE
        plane[radius < 0.88] = FAT + 40  # between the organs
        for blob, size, move, level in zip(BLOBS, jitter, moves, levels, strict=True):
            dz = (z0 - blob.center[2] - move[2]) / (blob.radii[2] * size[2])
            if abs(dz) >= 1:
                continue
            dx = (x - blob.center[0] - move[0]) / (blob.radii[0] * size[0])
            dy = (y - blob.center[1] - move[1]) / (blob.radii[1] * size[1])
            inside = (dx * dx + dy * dy < 1 - dz * dz) & (radius < 0.93)
            plane[inside] = blob.hounsfield + level
            label[..., k][inside] = blob.label
        grain = rng.standard_normal(plane.shape, dtype=np.float32)
        grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1)) / np.float32(1.732)  # CT noise is not white
        image[..., k] = np.clip(plane + noise_hu * grain, -1024, 3071)
    return image, label


def write_phantom(
    image_path: pathlib.Path,
    label_path: pathlib.Path | None = None,
    shape: tuple[int, int, int] = (512, 512, 100),
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 3.0),
    axes: str = "LPS",
    seed: int = 0,
) -> None:
    """Write a phantom as NIfTI; `axes` names the direction in which each stored axis grows, such as LPS or SAR.

    `shape` and `spacing_mm` are the patient's (left-right, front-back, foot-head), whatever the storage order.
    """
    image, label = make_phantom(shape, spacing_mm, seed)
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2)
    lps = nib.orientations.axcodes2ornt("LPS")
    turn = nib.orientations.ornt_transform(lps, nib.orientations.axcodes2ornt(axes))
    affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    for path, volume in ((image_path, image), (label_path, label)):
        if path is None:
            continue
        turned = nib.Nifti1Image(nib.orientations.apply_orientation(volume, turn), affine)
        turned.header.set_xyzt_units("mm")
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(turned, path)
