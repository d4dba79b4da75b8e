"""A scan inside the program: its geometry, and its axial slices in one fixed order, whatever format it comes from.

Slices are in LPS order, (Z, Y, X) with x growing to the patient's left, y to the back and z to the head: a slice then
looks as on a radiologist's screen. Most CT is stored that way, so that its voxels need not be moved.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from ..errors import VolumeError
from ..hounsfield import AIR
from .read_ahead import ReadAhead

Slices = ReadAhead[tuple[int, NDArray[np.int16]]]  # (z, slice), slice (Y, X) int16 HU

NameBy = Literal["number", "uid", "accession", "folder"]

READ_AHEAD_BYTES = 64 << 20  # decoded ahead of the network
LARGEST_FIELD_MM = 2000.0  # scanners reach 700 mm; the network's grid stays within 1344 x 1344 pixels of 1.5 mm
LARGEST_LENGTH_MM = 4000.0  # a tall patient's whole body, twice
# Cosine by which two axes may differ from a right angle: 0.2 degrees. Directions of three decimals differ by 0.001.
RIGHT_ANGLE = 3e-3
SMALLEST_FIELD_MM = 80.0  # a newborn's abdomen


@dataclass(frozen=True)
class Geometry:
    """Where a volume's voxels lie, and how its stored axes become (Z, Y, X) in LPS order.

    Attributes:
        shape: voxels along the stored axes.
        affine: (4, 4), stored voxel -> patient RAS, in the file's unit.
        spacing_zyx_mm: distance of slices along their normal, of rows and of columns along a pixel's edges. In a
            sheared volume, such as a tilted gantry gives, the step from a voxel to that of the next slice is longer.
        orientation: (3, 2); row i holds the LPS axis (0 x, 1 y, 2 z) of stored axis i, and -1 where it runs the other
            way.
        unit_mm: the affine's unit in millimetres.
        orientation_known: whether the file says where left, front and head are; if not, the affine is a guess.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    spacing_zyx_mm: tuple[float, float, float]
    orientation: NDArray[np.int64]
    unit_mm: float = 1.0
    orientation_known: bool = True

    @classmethod
    def of(cls, shape: tuple[int, int, int], affine: NDArray[np.float64], unit_mm: float = 1.0) -> Geometry:
        """The geometry of a volume; `unit_mm` is the affine's unit in millimetres."""
        orientation = ornt_transform(io_orientation(affine), axcodes2ornt("LPS")).astype(np.int64)
        z, y, x = (affine[:3, axis] * unit_mm for axis in _stored_axes_zyx(orientation))
        normal = np.cross(x, y)
        distance = float(abs(z @ normal) / np.linalg.norm(normal))
        return cls(shape, affine, (distance, float(np.linalg.norm(y)), float(np.linalg.norm(x))), orientation, unit_mm)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel, ml: the determinant, since a sheared one is smaller than its edges multiplied."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) * self.unit_mm**3 / 1000

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        z, y, x = (self.shape[axis] for axis in _stored_axes_zyx(self.orientation))
        return z, y, x

    @property
    def oriented_affine(self) -> NDArray[np.float64]:
        """(4, 4), (x, y, z) of the oriented volume -> patient RAS, mm."""
        stored = np.zeros((4, 4))  # (x, y, z) -> stored voxel
        stored[3, 3] = 1
        for axis, (lps_axis, direction) in enumerate(self.orientation):
            stored[axis, int(lps_axis)] = direction
            stored[axis, 3] = 0 if direction == 1 else self.shape[axis] - 1
        return np.diag([self.unit_mm, self.unit_mm, self.unit_mm, 1.0]) @ self.affine @ stored

    @property
    def slowest_is_z(self) -> bool:
        """Whether one axial slice is stored after the other, so that the volume need never be in memory as a whole."""
        return int(self.orientation[2, 0]) == 2

    @property
    def ascends(self) -> bool:
        """Whether the last stored axis grows towards the positive end of its LPS axis."""
        return int(self.orientation[2, 1]) == 1

    def orient(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A (Z, Y, X) view, in LPS order, of a volume in stored axis order. Writing to it writes to the volume."""
        return self._flip(stored).transpose(_stored_axes_zyx(self.orientation))

    def restore(self, oriented: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `orient`: a view in stored axis order of a (Z, Y, X) volume."""
        return self._flip(oriented.transpose(np.argsort(_stored_axes_zyx(self.orientation))))

    def _flip(self, stored: NDArray[Any]) -> NDArray[Any]:
        return stored[tuple(slice(None, None, int(direction)) for direction in self.orientation[:, 1])]


def _stored_axes_zyx(orientation: NDArray[np.int64]) -> list[int]:
    return [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in (2, 1, 0)]


def is_singular(affine: NDArray[np.float64]) -> bool:
    """Whether an affine (4, 4) has no inverse, or so nearly none that its axes cannot be told apart."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(affine).all() and np.isfinite(norms).all() and norms.all()):
            return True
        axes = affine[:3, :3] / norms
    return bool(abs(np.linalg.det(axes)) < 1e-6 or np.isnan(io_orientation(affine)).any())


def is_rigid(affine: NDArray[np.float64]) -> bool:
    """Whether an affine's axes are at right angles, but for the rounding of what they come from."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=RIGHT_ANGLE))


def implausible(path: pathlib.Path, geometry: Geometry) -> list[str]:
    """Warnings about a size that no patient has, or a geometry that nobody knew.

    Raises:
        VolumeError: the slices are so large that their resampled copies would not fit into memory.
    """
    z_mm, *field_mm = (n * mm for n, mm in zip(geometry.shape_zyx, geometry.spacing_zyx_mm, strict=True))
    size = f"{field_mm[1]:.4g} x {field_mm[0]:.4g} x {z_mm:.4g} mm"
    if not max(field_mm) <= LARGEST_FIELD_MM or not z_mm <= LARGEST_LENGTH_MM:
        raise VolumeError(f"{path}: the scan measures {size}, larger than any patient; correct its spacing or its unit")
    warnings = []
    if min(field_mm) < SMALLEST_FIELD_MM:
        warnings.append(f"the scan measures {size}, too little for an abdomen; check its spacing, or the unit of it")
    if np.array_equal(np.abs(geometry.affine), np.eye(4)):  # ITK's is negative: its axes grow to the left and back
        warnings.append(
            "its affine is the identity, voxels of 1 mm from the origin on, as programs write it that know neither "
            "spacing nor orientation: volumes and labels may be wrong; give the scan with its own geometry"
        )
    return warnings


def to_int16(hounsfield: NDArray[Any]) -> NDArray[np.int16]:
    """HU of any number type, rounded and clipped to int16; NaN becomes air."""
    if hounsfield.dtype.kind == "f":
        wide = np.asarray(hounsfield, np.result_type(hounsfield, np.float32))  # float16 cannot hold int16's limits
        hounsfield = np.rint(np.nan_to_num(wide, nan=AIR, posinf=np.inf, neginf=-np.inf))
    limits = np.iinfo(np.int16)
    clipped: NDArray[np.int16] = np.clip(hounsfield, limits.min, limits.max).astype(np.int16)
    return clipped


class Volume(Protocol):
    """A CT whose geometry is known and whose voxels are still in its files."""

    @property
    def path(self) -> pathlib.Path:
        """The file or folder it comes from."""
        ...

    @property
    def geometry(self) -> Geometry:
        """Where its voxels lie."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about it but does not stop us, a sentence each."""
        ...

    def slices(self) -> Slices:
        """Start decoding, and iterate over (z, slice): every z once, ascending or descending.

        A slice is (Y, X) int16 HU, contiguous. The iterator must be closed if it is not used up.

        Raises:
            VolumeError: while iterating, when the file is truncated or corrupt.
        """
        ...


def ahead_of_network(shape_zyx: tuple[int, int, int]) -> int:
    """How many decoded slices may wait for the network; at least two."""
    return max(2, READ_AHEAD_BYTES // (2 * shape_zyx[1] * shape_zyx[2]))


@dataclass(frozen=True)
class FindOptions:
    """How scans are looked for, and what may be done to make volumes of them.

    Attributes:
        recursive: look for NIfTI in subfolders too; DICOM is always looked for in the whole tree.
        name_by: what DICOM series are called by. `number`: series number and a hash of the series UID, which tell
            nothing of the patient; `uid`: the series UID; `accession`: accession and series number, `folder`: the
            folder's name, both with that hash, so that a name stays a series' own when others come or go.
        resample_gaps: interpolate slices that are missing from a DICOM series, instead of refusing it.
        leave_out: a folder in the tree that is not looked into, OUTPUT.
        on_header: called with the number of DICOM headers read so far, and of all.
    """

    recursive: bool = False
    name_by: NameBy = "number"
    resample_gaps: bool = False
    leave_out: pathlib.Path | None = None
    on_header: Callable[[int, int], None] = lambda done, total: None


DEFAULT_OPTIONS = FindOptions()


@dataclass(frozen=True)
class Ready:
    """A scan's state: nothing speaks against trying it."""


@dataclass(frozen=True)
class Refused:
    """A scan's state: it cannot be segmented, which is known beforehand; a failed case. `reason` is its line."""

    reason: str


@dataclass(frozen=True)
class NotCt:
    """A scan's state: nobody would segment it; listed, and no failure. `reason` is its line."""

    reason: str


State = Ready | Refused | NotCt


@dataclass(frozen=True)
class Scan:
    """Something in INPUT that is a scan, or that a user may take for one; not opened yet.

    Attributes:
        name: of the case.
        path: the file or folder that messages name.
        open: reads its geometry; raises VolumeError.
        state: whether it can be segmented.
        mask_extension: of its NIfTI mask's name, where the scan's own name decides; None: the output decides.
        series_uid: of a DICOM series.
        size_bytes: about, of what has to be read; 0 if that is not known.
    """

    name: str
    path: pathlib.Path
    open: Callable[[], Volume]
    state: State = Ready()
    mask_extension: str | None = None
    series_uid: str | None = None
    size_bytes: int = 0

    @property
    def problem(self) -> str | None:
        """Why it cannot be segmented, if that is known beforehand."""
        return self.state.reason if isinstance(self.state, Refused) else None

    @property
    def not_ct(self) -> str | None:
        """Why nobody would segment it."""
        return self.state.reason if isinstance(self.state, NotCt) else None


class Format(Protocol):
    """How scans are stored. `FORMATS` lists all; a path belongs to the first that claims it."""

    @property
    def accepts(self) -> str:
        """What it reads, for a line that says what was expected: `DICOM`."""
        ...

    @property
    def extensions(self) -> tuple[str, ...]:
        """What names of its files usually end with, in lower case."""
        ...

    def claims(self, path: pathlib.Path, head: bytes) -> bool:
        """Whether a file is one of this format, as its name and its first `HEAD_BYTES` tell.

        Args:
            path: the file.
            head: its first bytes; none where it cannot be read, or is not a regular file.
        """
        ...

    def find(self, files: Sequence[pathlib.Path], folder: pathlib.Path, options: FindOptions) -> list[Scan]:
        """The scans in the files that it claimed, in order of name; what may be taken for a scan too.

        Args:
            files: at least one.
            folder: INPUT, or the folder that INPUT lies in.
            options: how scans are looked for.

        Raises:
            InputError: a library is missing.
        """
        ...

    def open(self, path: pathlib.Path) -> Volume:
        """The volume in a file that it claims.

        Raises:
            VolumeError: it is not a CT that can be segmented.
        """
        ...


def the_only(scans: Sequence[Scan], path: pathlib.Path) -> Scan:
    """The one CT among the scans of a file or folder.

    Raises:
        VolumeError: there is none, or more than one.
    """
    found = [scan for scan in scans if not isinstance(scan.state, NotCt)]
    if len(found) != 1:
        names = ", ".join(scan.name for scan in found[:5]) or "none"
        raise VolumeError(f"{path}: expected one CT, found {len(found)} ({names}); give the file or folder of one")
    return found[0]
