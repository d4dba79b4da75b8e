"""The labels of FLARE2021."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Organ(IntEnum):
    """Voxel values of a mask."""

    BACKGROUND = 0
    LIVER = 1
    KIDNEYS = 2
    SPLEEN = 3
    PANCREAS = 4


ORGANS: tuple[Organ, ...] = tuple(organ for organ in Organ if organ != Organ.BACKGROUND)
IGNORE = 255  # in a reference: nobody annotated this voxel; it counts in no loss and no score

# Codes and meanings of SNOMED CT, as DICOM uses them (PS3.16, CID 7199).
SNOMED_CT = {
    Organ.LIVER: ("10200004", "Liver"),
    Organ.KIDNEYS: ("64033007", "Kidney"),
    Organ.SPLEEN: ("78961009", "Spleen"),
    Organ.PANCREAS: ("15776009", "Pancreas"),
}
ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")  # the category of all of them

# RGB, light enough to be seen on a CT and dark enough on white.
COLOURS = {
    Organ.LIVER: (209, 73, 91),
    Organ.KIDNEYS: (58, 172, 92),
    Organ.SPLEEN: (80, 140, 210),
    Organ.PANCREAS: (237, 174, 73),
}


def voxels_by_plane(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each label in every plane of the last axis, (planes, labels).

    Plane by plane, since numpy counts in copies of 8 bytes per voxel.
    """
    planes = (mask[..., i].ravel(order="K") for i in range(mask.shape[2]))
    return np.stack([np.bincount(plane, minlength=len(Organ)) for plane in planes])


def organ_voxels(mask: NDArray[np.uint8]) -> dict[Organ, int]:
    """Voxels of every organ, zero where it is missing; any axis order."""
    counts = voxels_by_plane(mask).sum(axis=0)
    return {organ: int(counts[organ]) for organ in ORGANS}
