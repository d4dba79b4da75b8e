"""The labels of FLARE2021."""

from enum import IntEnum


class Organ(IntEnum):
    """Voxel values of a mask."""

    BACKGROUND = 0
    LIVER = 1
    KIDNEYS = 2
    SPLEEN = 3
    PANCREAS = 4


ORGANS: tuple[Organ, ...] = tuple(organ for organ in Organ if organ != Organ.BACKGROUND)
IGNORE = 255  # in a reference: nobody annotated this voxel; it counts in no loss and no score
