"""The plain way, to compare with: python -m benchmarks.plain SCAN MASK MODEL.

nibabel reads the whole volume, the network runs in eager float32 as trained, one full slice at a time, argmax, nibabel
writes. MODEL is a bundled model's name or a weights file.
"""

from __future__ import annotations

import pathlib
import sys

import nibabel as nib
import numpy as np
import torch

from app.checkpoint import bundled_models, find_model, load_checkpoint
from app.components import keep_largest
from app.intensity import network_input, window
from app.scan import orient
from app.slices import neighbour_rows, neighbour_step, network_grid, to_grid, to_scan


@torch.inference_mode()
def main(scan: str, mask: str, model: str) -> None:
    """Segment one scan."""
    checkpoint = load_checkpoint(find_model(model) if model in bundled_models() else [pathlib.Path(model)])
    config, network = checkpoint.config, checkpoint.network
    image = nib.load(scan)
    voxels = image.get_fdata()
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    ).astype(int)
    volume = orient(voxels, turn)
    labels = np.zeros(voxels.shape, np.uint8, order="F")
    view = orient(labels, turn)
    zooms = image.header.get_zooms()
    spacing_z, *spacing_yx = (zooms[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in (2, 1, 0))
    grid = network_grid(volume.shape[1:], spacing_yx, config.spacing_mm)
    step = neighbour_step(spacing_z, config.neighbour_mm)
    for z in range(len(volume)):
        rows = np.stack([volume[row] for row in neighbour_rows(z, step, config.channels_in, len(volume))])
        windowed = window(torch.from_numpy(rows).float()[None], *config.window_hu)
        logits = network(network_input(to_grid(windowed, grid))).refined
        view[z] = to_scan(logits, volume.shape[1:]).argmax(1)[0].byte().numpy()
    keep_largest(labels)
    nib.save(nib.Nifti1Image(labels, image.affine), mask)


if __name__ == "__main__":
    main(*sys.argv[1:4])
