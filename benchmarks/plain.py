"""The plain way, to compare with: python -m benchmarks.plain SCAN MASK MODEL.

nibabel reads the whole volume, the network runs in eager float32 as trained, one full slice at a time, argmax, nibabel
writes. MODEL is a bundled model's name.
"""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import torch

from app.checkpoint import find_model, load_checkpoint
from app.engines.torch_images import network_input, to_scan, windowed_slice
from app.inference.components import keep_largest
from app.inference.grid import network_grid
from app.inference.plan import neighbour_rows, neighbour_step
from app.network import load
from app.volumes import Geometry


@torch.inference_mode()
def main(scan: str, mask: str, model: str) -> None:
    """Segment one scan."""
    checkpoint = load_checkpoint(find_model(model))
    config, network = checkpoint.config, load(checkpoint)
    image = nib.load(scan)
    voxels = image.get_fdata()
    geometry = Geometry.of(voxels.shape, image.affine)
    volume = geometry.orient(voxels)
    labels = np.zeros(voxels.shape, np.uint8, order="F")
    view = geometry.orient(labels)
    spacing_z, *spacing_yx = geometry.spacing_zyx_mm
    grid = network_grid(volume.shape[1:], spacing_yx, config.spacing_mm)
    step = neighbour_step(spacing_z, config.neighbour_mm)
    for z in range(len(volume)):
        rows = [torch.from_numpy(volume[row]) for row in neighbour_rows(z, step, config.channels_in, len(volume))]
        windowed = torch.stack([windowed_slice(row, config.window_hu, grid) for row in rows])
        logits = network(network_input(windowed)[None]).refined
        view[z] = to_scan(logits, volume.shape[1:]).argmax(1)[0].byte().numpy()
    keep_largest(labels)
    nib.save(nib.Nifti1Image(labels, image.affine), mask)


if __name__ == "__main__":
    main(*sys.argv[1:4])
