"""The labels of FLARE2021."""

from enum import IntEnum


class Organ(IntEnum):
    """Voxel values of a mask."""

    BACKGROUND = 0
    LIVER = 1
    KIDNEYS = 2
    SPLEEN = 3
    PANCREAS = 4
