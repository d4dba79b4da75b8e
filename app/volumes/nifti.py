"""NIfTI-1 and NIfTI-2: headers checked before anything is allocated, voxels decoded once, front to back.

Random access into a .nii.gz would decompress it from the start each time. So a thread decodes forward only, ahead of
the network.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import VolumeError
from . import gzip_file
from .gzip_file import Readable, open_bytes
from .read_ahead import ReadAhead
from .volume import Geometry, Scan, Slices, Volume, ahead_of_network, implausible, is_rigid, is_singular, to_int16

Header = Any  # nibabel is not typed: Nifti1Header or Nifti2Header

EXTENSIONS = (".nii.gz", ".nii")
CHANNEL = "_0000"  # the number of the first channel, which nnU-Net and FLARE add to a scan's name
CHUNK_BYTES = 8 << 20  # decoded at a time
MAX_OFFSET = 1 << 31  # where voxels may begin; header extensions are far smaller
DRAINED_BYTES = 256 << 20  # of what follows the voxels
SPACE_UNIT_BITS = 0x07  # of xyzt_units
UNIT_MM = {1: 1000.0, 3: 0.001}  # metre, micron; every other code, undefined ones included, is read as millimetres


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
        with _reading(self.path), open_bytes(self.path) as stream:
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
            values = np.ascontiguousarray(stored, dtype=np.float32)
            if scaling is not None:
                values = values * np.float32(scaling[0]) + np.float32(scaling[1])
        return to_int16(values)


def _read_up_to(stream: Readable, size: int) -> bytes:
    """Read `size` bytes, or as many as there are."""
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


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
    """Read what follows the voxels, as far as it is no bomb."""
    left = DRAINED_BYTES
    while left > 0 and (more := stream.read(min(CHUNK_BYTES, left))):
        left -= len(more)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turn what can go wrong while reading into one line."""
    try:
        yield
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise VolumeError(
            f"{path}: cannot be opened ({error.strerror}); check that it exists and may be read"
        ) from error
    except EOFError as error:
        raise VolumeError(f"{path}: the file ends too early (truncated); copy or export it again") from error
    except (OSError, MemoryError, gzip_file.DECODE_ERROR) as error:
        raise VolumeError(f"{path}: cannot be decoded ({error}); copy or export it again") from error


def extension_of(path: pathlib.Path) -> str | None:
    """The extension, in lower case, by which a file counts as a NIfTI scan; None for other files and hidden ones."""
    if path.name.startswith("."):
        return None
    return next((extension for extension in EXTENSIONS if path.name.lower().endswith(extension)), None)


def find(source: pathlib.Path) -> list[Scan]:
    """The NIfTI files of a folder, not of its subfolders; or the one file."""
    paths = sorted(source.iterdir()) if source.is_dir() else [source]
    return [_scan(path, extension) for path in paths if (extension := extension_of(path))]


def _scan(path: pathlib.Path, extension: str) -> Scan:
    name = path.name[: len(path.name) - len(extension)].removesuffix(CHANNEL)
    problem = None if name else f"{path}: nothing is left of its name without {CHANNEL}; rename it"
    return Scan(name, path, partial(open_nifti, path), extension, problem)


def open_nifti(path: pathlib.Path) -> NiftiVolume:
    """Read a header and check that the file is a CT that can be segmented.

    Raises:
        VolumeError: it is not; the message says what was found, what is accepted and what to do.
    """
    header = _read_header(path)
    with np.errstate(all="ignore"):
        shape = _checked_shape(path, header)
        _check_values(path, header)
        affine, warnings = _checked_affine(path, header)
    _check_length(path, header, shape)
    unit_mm = UNIT_MM.get(int(header["xyzt_units"]) & SPACE_UNIT_BITS, 1.0)
    geometry = Geometry.of(shape, affine, unit_mm)
    return NiftiVolume(path, header, geometry, (*warnings, *implausible(path, geometry)))


def _read_header(path: pathlib.Path) -> Header:
    with _reading(path):
        if not path.is_file() and path.exists() and not path.is_dir():
            raise VolumeError(f"{path}: not a regular file (a pipe, socket or device); copy the scan to a file")
        with open_bytes(path) as stream:
            block = _read_up_to(stream, nib.Nifti2Header.template_dtype.itemsize)
    if not block:
        raise VolumeError(f"{path}: the file is empty; copy or export it again")
    for kind, magic_at, magic in ((nib.Nifti1Header, 344, b"n+1\0"), (nib.Nifti2Header, 4, b"n+2\0\r\n\x1a\n")):
        size = kind.template_dtype.itemsize
        if len(block) >= size and block[magic_at : magic_at + len(magic)] == magic:
            return kind(block[:size], check=False)
    if block[344:348] == b"ni1\0":
        raise VolumeError(f"{path}: header of an .hdr/.img pair; convert it to a single .nii.gz file")
    raise VolumeError(f"{path}: not a NIfTI file; expected .nii or .nii.gz (convert DICOM with dcm2niix)")


def _checked_shape(path: pathlib.Path, header: Header) -> tuple[int, int, int]:
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise VolumeError(f"{path}: header claims {dimensions} dimensions; expected a 3-D CT, export it again")
    shape = tuple(int(n) for n in header["dim"][1 : dimensions + 1])
    if min(shape) < 1:
        raise VolumeError(f"{path}: expected a 3-D CT, got shape {shape}; export it again")
    if dimensions < 3:
        raise VolumeError(f"{path}: expected a 3-D CT, got shape {shape}; stack the slices into one volume")
    if any(n != 1 for n in shape[3:]):
        raise VolumeError(f"{path}: expected a 3-D CT, got shape {shape}; split the series into one file each")
    return shape[0], shape[1], shape[2]


def _check_values(path: pathlib.Path, header: Header) -> None:
    try:
        dtype = header.get_data_dtype()
        header.get_slope_inter()
    except KeyError as error:
        raise VolumeError(f"{path}: unknown voxel type {error}; export it as int16 HU") from error
    except HeaderDataError as error:
        raise VolumeError(f"{path}: unusable header ({error}); export it again") from error
    first, offset = header.template_dtype.itemsize + 4, float(header["vox_offset"])
    if not np.isfinite(offset) or not first <= offset < MAX_OFFSET:
        raise VolumeError(f"{path}: voxels begin at byte {offset:g}, expected {first} or more; export it again")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise VolumeError(f"{path}: expected a CT of int8..float64, got voxels of type {name}; export it as int16 HU")


def _checked_affine(path: pathlib.Path, header: Header) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    spacing = tuple(round(float(mm), 4) for mm in header["pixdim"][1:4])
    if not all(np.isfinite(mm) and mm != 0 for mm in spacing):
        raise VolumeError(f"{path}: voxel spacing {spacing} mm; expected three positive numbers, repair the header")
    warnings = []
    has_sform = int(header["sform_code"]) > 0
    try:
        qform = _quiet_qform(header)
    except (HeaderDataError, ValueError) as error:
        if not has_sform:  # the sform comes first where there is one
            raise VolumeError(f"{path}: unusable affine ({error}); repair the header's qform") from error
        qform = None
        warnings.append(f"unusable qform ({error}); the sform was used")
    if has_sform:
        affine = np.asarray(header.get_sform(), np.float64)
    else:
        affine = np.asarray(header.get_base_affine() if qform is None else qform, np.float64)
    if is_singular(affine):
        raise VolumeError(
            f"{path}: singular affine {affine[:3, :3].round(3).tolist()}; repair the header's sform or qform"
        )
    if has_sform and qform is not None and not np.allclose(qform, affine, atol=1e-2):
        warnings.append("sform and qform disagree; the sform was used")
    return affine, tuple(warnings)


def _quiet_qform(header: Header) -> NDArray[np.float64] | None:
    """The qform's affine; None where its code is 0. A qfac other than -1 means 1, as the standard says of 0."""
    header = header.copy()
    if header["pixdim"][0] != -1:
        header["pixdim"][0] = 1
    affine: NDArray[np.float64] | None = header.get_qform(coded=True)[0]
    return affine


def _check_length(path: pathlib.Path, header: Header, shape: tuple[int, int, int]) -> None:
    """Refuse a header that promises more than its file can hold, before anything is allocated."""
    promised = int(np.prod(shape, dtype=object)) * int(header.get_data_dtype().itemsize)
    with _reading(path):
        held = path.stat().st_size
        compressed = gzip_file.is_gzip(path)
    if promised > (held * gzip_file.MAX_RATIO if compressed else held - header.get_data_offset()):
        raise VolumeError(
            f"{path}: header promises {promised} bytes of voxels (shape {shape}), the file has {held} bytes; "
            "it is truncated, copy or export it again"
        )


def description(path: pathlib.Path) -> str:
    """The description in a NIfTI file's header; empty where the file is none."""
    try:
        return bytes(_read_header(path)["descrip"].item()).decode("latin-1")
    except VolumeError:
        return ""


def mask_header(volume: Volume) -> Header:
    """The header of a mask on a scan's grid: uint8, unscaled; as much as possible is the scan's own.

    Args:
        volume: a NIfTI gives qform, sform, their codes and units; any other format the affine, in millimetres.
    """
    if isinstance(volume, NiftiVolume):
        header = volume.header.copy()
        header["cal_min"] = header["cal_max"] = 0  # they are the CT's
    else:
        header = nib.Nifti1Header()
        if is_rigid(volume.geometry.affine):  # a qform cannot shear
            header.set_qform(volume.geometry.affine, code="scanner")
        header.set_sform(volume.geometry.affine, code="scanner")
        header.set_xyzt_units("mm")
    header.set_data_shape(volume.geometry.shape)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.template_dtype.itemsize + 4
    return header
