"""The organs, the labels that they have in a mask, and everything else that is known of each: one row per organ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Organ(IntEnum):
    """Voxel values of a mask (those of FLARE2021), and the facts of each organ.

    To add an organ, add a row here, with the next value. Models name their labels, so that those trained before keep
    working.

    Attributes:
        snomed: code in SNOMED CT, as DICOM uses it (PS3.16, CID 7199).
        meaning: the code's meaning, and the organ's name in DICOM objects.
        rgb: colour in pictures, light enough to be seen on a CT and dark enough on white.
        components: connected components that postprocessing keeps.
        largest_ml: hardly any organ is larger; polycystic livers and kidneys, the spleens of leukaemia.
    """

    snomed: str
    meaning: str
    rgb: tuple[int, int, int]
    components: int
    largest_ml: int

    def __new__(
        cls,
        value: int,
        snomed: str = "",
        meaning: str = "",
        rgb: tuple[int, int, int] = (0, 0, 0),
        components: int = 0,
        largest_ml: int = 0,
    ) -> Organ:
        """Make a member of a row."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.snomed, member.meaning, member.rgb = snomed, meaning, rgb
        member.components, member.largest_ml = components, largest_ml
        return member

    BACKGROUND = 0
    LIVER = 1, "10200004", "Liver", (209, 73, 91), 1, 8000
    KIDNEYS = 2, "64033007", "Kidney", (58, 172, 92), 2, 4000
    SPLEEN = 3, "78961009", "Spleen", (80, 140, 210), 1, 6000
    PANCREAS = 4, "15776009", "Pancreas", (237, 174, 73), 1, 500

    @property
    def key(self) -> str:
        """The name in lower case: in messages, in JSON, and among a model's labels."""
        return self.name.lower()


ORGANS: tuple[Organ, ...] = tuple(organ for organ in Organ if organ != Organ.BACKGROUND)
LABELS: tuple[str, ...] = tuple(organ.key for organ in Organ)  # of a model that knows all of them
IGNORE = 255  # in a reference: nobody annotated this voxel; it counts in no loss and no score

ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")  # the SNOMED CT category of all organs


def listed(organs: Sequence[Organ]) -> str:
    """Organs in words, such as `liver, kidneys`."""
    return ", ".join(organ.key for organ in organs)


def voxels_by_plane(planes: Iterable[NDArray[Any]]) -> NDArray[np.int64]:
    """Voxels of each label in every plane, (planes, labels).

    Plane by plane, since numpy counts in copies of 8 bytes per voxel.

    Raises:
        TypeError, ValueError: a value is no label.
    """
    return np.stack([np.bincount(plane.ravel(order="K"), minlength=len(Organ)) for plane in planes])


def organ_voxels(mask: NDArray[np.uint8]) -> dict[Organ, int]:
    """Voxels of every organ, zero where it is missing; any axis order."""
    counts = voxels_by_plane(mask.T).sum(axis=0)
    return {organ: int(counts[organ]) for organ in ORGANS}


def bounding_box(inside: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds every true voxel of an array of any dimensions; None where there is none."""
    box = []
    for axis in range(inside.ndim):
        line = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        if not len(line):
            return None
        box.append(slice(int(line[0]), int(line[-1]) + 1))
    return tuple(box)
