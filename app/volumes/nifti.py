"""NIfTI-1 and NIfTI-2: voxels decoded once, front to back.

Random access into a .nii.gz would decompress it from the start each time. So a thread decodes forward only, ahead of
the network.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..ownership import PROGRAM
from .gzip_file import Readable, compressed, open_bytes, plain_head
from .memory import ImageVolume
from .nifti_header import Header, checked_header, description, reading
from .read_ahead import ReadAhead
from .volume import (
    FindOptions,
    Geometry,
    Ready,
    Refused,
    Scan,
    Slices,
    Volume,
    ahead_of_network,
    is_rigid,
    to_int16,
)

EXTENSIONS = (".nii.gz", ".nii")
CHANNEL = "_0000"  # the number of the first channel, which nnU-Net and FLARE add to a scan's name
CHUNK_BYTES = 8 << 20  # decoded at a time
DRAINED_BYTES = 256 << 20  # of what follows the voxels


@dataclass(frozen=True)
class NiftiVolume:
    """A NIfTI file whose header was read and found usable; see `Volume`.

    Attributes:
        path: the file.
        header: as stored.
        geometry: of the header's best affine.
        warnings: what is odd about the header but does not stop us.
    """

    path: pathlib.Path
    header: Header
    geometry: Geometry
    warnings: tuple[str, ...]

    def slices(self) -> Slices:
        """Start decoding; see `Volume.slices`."""
        return ReadAhead(self._decode(self._hounsfield), depth=ahead_of_network(self.geometry.shape_zyx))

    def exact_slices(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Iterate over (z, slice) as `slices` does, but with values as they are: for label files.

        Raises:
            VolumeError: while iterating, when the file is truncated or corrupt.
        """
        return self._decode(self._scaled)

    def _decode(
        self, convert: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> Generator[tuple[int, NDArray[Any]], None, None]:
        dtype, shape = self.header.get_data_dtype(), self.geometry.shape
        plane_bytes = shape[0] * shape[1] * dtype.itemsize
        planes = max(1, CHUNK_BYTES // plane_bytes) if self.geometry.slowest_is_z else shape[2]
        ascending = self.geometry.ascends or not self.geometry.slowest_is_z
        with reading(self.path), open_bytes(self.path) as stream:
            _read_exactly(stream, self.header.get_data_offset())
            for start in range(0, shape[2], planes):
                count = min(planes, shape[2] - start)
                raw = np.frombuffer(_read_exactly(stream, count * plane_bytes), dtype)
                stack = self.geometry.orient(raw.reshape((*shape[:2], count), order="F"))
                lowest = start if ascending else shape[2] - start - count
                for i in range(len(stack)) if ascending else reversed(range(len(stack))):
                    yield lowest + i, convert(stack[i])
            _drain(stream)  # at its end gzip's checksum is compared, and damage may have made it longer

    def _scaling(self) -> tuple[float, float] | None:
        """Slope and intercept; None where stored values are meant as they are."""
        slope, inter = self.header.get_slope_inter()
        return None if slope is None or (slope == 1.0 and inter == 0.0) else (slope, inter)

    def _scaled(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Stored values with slope and intercept applied, in float64 where there are any."""
        scaling = self._scaling()
        return stored if scaling is None else stored * scaling[0] + scaling[1]

    def _hounsfield(self, stored: NDArray[Any]) -> NDArray[np.int16]:
        """Stored values -> HU, and the one place where a reoriented view becomes contiguous memory."""
        scaling = self._scaling()
        if scaling is None and np.can_cast(stored.dtype, np.int16):
            return np.ascontiguousarray(stored, dtype=np.int16)
        with np.errstate(over="ignore", invalid="ignore"):
            if scaling is None:
                return to_int16(np.ascontiguousarray(stored, dtype=np.float32))
            # float64 where float32 cannot hold the stored values, such as int32 with an offset of millions
            values = np.ascontiguousarray(stored, dtype=np.result_type(stored, np.float32))
            return to_int16(values * values.dtype.type(scaling[0]) + values.dtype.type(scaling[1]))


def _read_exactly(stream: Readable, size: int) -> bytearray:
    """Read `size` bytes, growing with what the file really holds; EOFError when it holds less."""
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(CHUNK_BYTES, size - len(data)))
        if not chunk:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += chunk
    return data


def _drain(stream: Readable) -> None:
    """Read what follows the voxels, up to a limit, in case it is a decompression bomb."""
    left = DRAINED_BYTES
    while left > 0 and (more := stream.read(min(CHUNK_BYTES, left))):
        left -= len(more)


def extension_of(path: pathlib.Path) -> str | None:
    """The extension, in lower case, by which a file counts as a NIfTI scan; None for other files and hidden ones."""
    if path.name.startswith("."):
        return None
    return next((extension for extension in EXTENSIONS if path.name.lower().endswith(extension)), None)


class Nifti:
    """NIfTI, known by the names of its files; see `Format`."""

    accepts = ".nii.gz or .nii file"
    extensions = EXTENSIONS

    def claims(self, path: pathlib.Path, head: bytes) -> bool:
        """By name, since a damaged scan is to be reported and not passed over; but not a mask of this program."""
        return extension_of(path) is not None and not is_own_mask(head)

    def find(self, files: Sequence[pathlib.Path], folder: pathlib.Path, options: FindOptions) -> list[Scan]:
        """A scan per file; those in subfolders only if that is asked for.

        `a.nii` is called by its whole name, so that its line of the log, its statistics and pages are its own even if
        a later run has `a.nii.gz`.
        """
        return [_scan(path, folder) for path in files if options.recursive or path.parent == folder]

    def open(self, path: pathlib.Path) -> NiftiVolume:
        """See `open_nifti`."""
        return open_nifti(path)


def is_own_mask(head: bytes) -> bool:
    """Whether a file, given its first bytes, is a mask that this program wrote, whatever its name is."""
    return description(plain_head(head) or b"").startswith(PROGRAM.encode())


def _scan(path: pathlib.Path, folder: pathlib.Path) -> Scan:
    extension = extension_of(path) or ""
    name = path.name[: len(path.name) - len(extension)].removesuffix(CHANNEL)
    state = Ready() if name else Refused(f"{path}: nothing is left of its name without {CHANNEL}; rename it")
    kept, dropped = ("", extension) if extension == EXTENSIONS[0] else (extension, "")
    below = path.relative_to(folder).with_name((name or "_") + kept)  # of a mirrored tree
    try:
        size = path.stat().st_size
    except OSError:  # a link that leads nowhere; opening it will say so
        size = 0
    return Scan(str(below), path, partial(open_nifti, path), state, mask_extension=dropped, size_bytes=size)


def open_nifti(path: pathlib.Path) -> NiftiVolume:
    """Read a header and check that the file is a CT that can be segmented.

    Raises:
        VolumeError: it is not; the message says what was found, what is accepted and what to do.
    """
    return NiftiVolume(path, *checked_header(path))


def mask_header(volume: Volume) -> Header:
    """The header of a mask on a scan's grid: uint8, unscaled; as much as possible is the scan's own.

    Args:
        volume: a NIfTI gives qform, sform, their codes and units; any other format the affine, in millimetres.
    """
    if isinstance(volume, (NiftiVolume, ImageVolume)):
        header = volume.header.copy()
        for name in ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3", "intent_name"):
            header[name] = np.zeros((), header[name].dtype)  # they are the CT's
    else:
        header = nib.Nifti1Header()
        # A qform cannot shear. ITK needs it where the sform's axes are not quite at right angles.
        if is_rigid(volume.geometry.affine):
            header.set_qform(volume.geometry.affine, code="scanner")
        else:  # whose product is the volume of a voxel; the sform has the shear
            lps_axes = volume.geometry.orientation[:, 0]
            header["pixdim"][1:4] = np.array(volume.geometry.spacing_zyx_mm)[2 - lps_axes]
        header.set_sform(volume.geometry.affine, code="scanner")
        header.set_xyzt_units("mm")
    header.set_data_shape(volume.geometry.shape)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.template_dtype.itemsize + 4
    return header


def small_nifti(voxels: NDArray[np.uint8], affine: NDArray[np.float64], slope: float, intercept: float) -> bytes:
    """A gzipped NIfTI file in memory.

    Args:
        voxels: (x, y, z).
        affine: (4, 4), voxel -> patient RAS, mm.
        slope: of stored values to real ones.
        intercept: likewise.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(slope, intercept)
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["vox_offset"] = header.template_dtype.itemsize + 4
    return compressed(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
