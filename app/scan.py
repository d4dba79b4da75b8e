"""NIfTI in, NIfTI out: read and orient a CT, restore and write its mask.

The one module that knows NIfTI. Files are decoded once, front to back, by a thread that runs ahead of the network:
random access into a .nii.gz costs a decompression from the start each time. Inside the program a scan is a sequence of
axial slices in LPS order, (Z, Y, X) with x growing to the patient's left, y to the back, z to the head: a slice then
looks as on a radiologist's screen, and most CT is stored that way, so that nothing needs to be turned.
"""

from __future__ import annotations

import contextlib
import gzip
import pathlib
import secrets
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.affines import voxel_sizes
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from app.read_ahead import ReadAhead

Slices = ReadAhead[tuple[int, NDArray[np.int16]]]
Header = Any  # nibabel is not typed: Nifti1Header or Nifti2Header

CHUNK_BYTES = 8 << 20  # read and compressed at a time
READ_AHEAD_BYTES = 64 << 20  # decoded ahead of the network
MAX_DEFLATE_RATIO = 1032  # zlib's technical details: no deflate stream expands further
AIR_HU = -1024  # stands for NaN
GZIP_MAGIC = b"\x1f\x8b"
UNIT_MM = {"meter": 1000.0, "micron": 0.001}  # every other unit code, unknown included, is read as millimetres
READ_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, MemoryError, gzip.BadGzipFile, isal_zlib.error)  # type: ignore[assignment]


class ScanError(Exception):
    """A file cannot be read as a CT, or a mask cannot be written; the message names file, finding and remedy."""


@dataclass(frozen=True)
class Scan:
    """A CT whose header was read and found usable; its voxels are still in the file.

    Attributes:
        path: the file.
        header: NIfTI header as stored.
        shape: voxels along the stored axes.
        affine: stored voxel -> patient RAS, (4, 4), in the file's unit.
        turn: (3, 2); row i holds the LPS axis (0 x, 1 y, 2 z) of stored axis i, and -1 where it runs the other way.
        spacing_zyx_mm: distance of slices, rows and columns.
        warnings: what is odd about the header but does not stop us.
    """

    path: pathlib.Path
    header: Header
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    turn: NDArray[np.int64]
    spacing_zyx_mm: tuple[float, float, float]
    warnings: tuple[str, ...]

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        z, y, x = (self.shape[axis] for axis in _stored_axes_zyx(self.turn))
        return z, y, x

    @property
    def streams(self) -> bool:
        """Whether the file holds one axial slice after the other, so that the volume never has to be in memory."""
        return int(self.turn[2, 0]) == 2

    def slices(self) -> Slices:
        """Start decoding, and iterate over (z, slice) with slice (Y, X) int16 HU, contiguous, in the file's order.

        Raises:
            ScanError: while iterating, when the file is truncated or corrupt.
        """
        _, rows, columns = self.shape_zyx
        return ReadAhead(self._decode(), depth=max(2, READ_AHEAD_BYTES // (2 * rows * columns)))

    def _decode(self) -> Generator[tuple[int, NDArray[np.int16]], None, None]:
        dtype = self.header.get_data_dtype()
        plane_bytes = self.shape[0] * self.shape[1] * dtype.itemsize
        planes = max(1, CHUNK_BYTES // plane_bytes) if self.streams else self.shape[2]
        ascending = not self.streams or self.turn[2, 1] == 1
        with _reading(self.path), open_bytes(self.path) as stream:
            _read_exactly(stream, self.header.get_data_offset())
            for start in range(0, self.shape[2], planes):
                count = min(planes, self.shape[2] - start)
                raw = np.frombuffer(_read_exactly(stream, count * plane_bytes), dtype)
                stack = orient(raw.reshape((*self.shape[:2], count), order="F"), self.turn)
                lowest = start if ascending else self.shape[2] - start - count
                for i in range(len(stack)) if ascending else reversed(range(len(stack))):
                    yield lowest + i, self._hounsfield(stack[i])
            stream.read(1)  # at the end of the data gzip's checksum is compared

    def _hounsfield(self, stored: NDArray[Any]) -> NDArray[np.int16]:
        """Stored values -> HU, and the one place where a turned view becomes contiguous memory."""
        slope, inter = self.header.get_slope_inter()
        unscaled = slope is None or (slope == 1.0 and inter == 0.0)
        if unscaled and np.can_cast(stored.dtype, np.int16):
            return np.ascontiguousarray(stored, dtype=np.int16)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(stored, dtype=np.float32)
            if not unscaled:
                values = values * np.float32(slope) + np.float32(inter)
        values = np.nan_to_num(values, nan=AIR_HU, posinf=np.inf, neginf=-np.inf)
        limits = np.iinfo(np.int16)
        return np.rint(np.clip(values, limits.min, limits.max)).astype(np.int16)


def _stored_axes_zyx(turn: NDArray[np.int64]) -> list[int]:
    return [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in (2, 1, 0)]


def orient(stored: NDArray[Any], turn: NDArray[np.int64]) -> NDArray[Any]:
    """A (Z, Y, X) view, in LPS order, of a volume in the file's axis order. Writing to it writes to the volume."""
    flipped = stored[tuple(slice(None, None, int(direction)) for direction in turn[:, 1])]
    return flipped.transpose(_stored_axes_zyx(turn))


def restore(oriented: NDArray[Any], turn: NDArray[np.int64]) -> NDArray[Any]:
    """The inverse of `orient`: a view in the file's axis order of a (Z, Y, X) volume."""
    stored = oriented.transpose(np.argsort(_stored_axes_zyx(turn)))
    return stored[tuple(slice(None, None, int(direction)) for direction in turn[:, 1])]


@contextlib.contextmanager
def open_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressing it if its first bytes say gzip, whatever its name says."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        if compressed:
            with igzip.IGzipFile(fileobj=raw, mode="rb") as stream:
                yield stream
        else:
            yield raw


def _read_exactly(stream: BinaryIO, size: int) -> bytearray:
    """Read `size` bytes, growing with what the file really holds; EOFError when it holds less."""
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(CHUNK_BYTES, size - len(data)))
        if not chunk:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += chunk
    return data


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turn what can go wrong while reading into one line."""
    try:
        yield
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise ScanError(f"{path}: cannot be opened ({error.strerror}); check that it exists and may be read") from error
    except EOFError as error:
        raise ScanError(f"{path}: the file ends too early (truncated); copy or export it again") from error
    except READ_ERRORS as error:
        raise ScanError(f"{path}: cannot be decoded ({error}); copy or export it again") from error


def open_scan(path: pathlib.Path) -> Scan:
    """Read a header and check that the file is a CT we can segment.

    Raises:
        ScanError: it is not; the message says what was found, what is accepted and what to do.
    """
    header = _read_header(path)
    with np.errstate(all="ignore"):
        shape = _checked_shape(path, header)
        _check_values(path, header)
        affine, warnings = _checked_affine(path, header)
    _check_length(path, header, shape)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LPS")).astype(np.int64)
    unit_mm = UNIT_MM.get(header.get_xyzt_units()[0], 1.0)
    spacing = voxel_sizes(affine) * unit_mm
    z, y, x = (float(spacing[axis]) for axis in _stored_axes_zyx(turn))
    return Scan(path, header, shape, affine, turn, (z, y, x), warnings)


def _read_header(path: pathlib.Path) -> Header:
    with _reading(path), open_bytes(path) as stream:
        block = stream.read(nib.Nifti2Header.template_dtype.itemsize)
    if not block:
        raise ScanError(f"{path}: the file is empty; copy or export it again")
    for kind, magic_at, magic in ((nib.Nifti1Header, 344, b"n+1\0"), (nib.Nifti2Header, 4, b"n+2\0\r\n\x1a\n")):
        size = kind.template_dtype.itemsize
        if len(block) >= size and block[magic_at : magic_at + len(magic)] == magic:
            return kind(block[:size], check=False)
    if block[344:348] == b"ni1\0":
        raise ScanError(f"{path}: header of an .hdr/.img pair; convert it to a single .nii.gz file")
    raise ScanError(f"{path}: not a NIfTI file; expected .nii or .nii.gz (convert DICOM with dcm2niix)")


def _checked_shape(path: pathlib.Path, header: Header) -> tuple[int, int, int]:
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise ScanError(f"{path}: header claims {dimensions} dimensions; expected a 3-D CT, export it again")
    shape = tuple(int(n) for n in header["dim"][1 : dimensions + 1])
    if min(shape) < 1:
        raise ScanError(f"{path}: expected a 3-D CT, got shape {shape}; export it again")
    if dimensions < 3:
        raise ScanError(f"{path}: expected a 3-D CT, got shape {shape}; stack the slices into one volume")
    if any(n != 1 for n in shape[3:]):
        raise ScanError(f"{path}: expected a 3-D CT, got shape {shape}; split the series into one file each")
    return shape[0], shape[1], shape[2]


def _check_values(path: pathlib.Path, header: Header) -> None:
    try:
        dtype = header.get_data_dtype()
        header.get_slope_inter()
    except KeyError as error:
        raise ScanError(f"{path}: unknown voxel type {error}; export it as int16 HU") from error
    except HeaderDataError as error:
        raise ScanError(f"{path}: unusable header ({error}); export it again") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise ScanError(f"{path}: expected a CT of int8..float64, got voxels of type {name}; export it as int16 HU")


def _checked_affine(path: pathlib.Path, header: Header) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    spacing = tuple(round(float(mm), 4) for mm in header["pixdim"][1:4])
    if not all(np.isfinite(mm) and mm != 0 for mm in spacing):
        raise ScanError(f"{path}: voxel spacing {spacing} mm; expected three positive numbers, repair the header")
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
        qform = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        raise ScanError(f"{path}: unusable affine ({error}); repair the header's qform") from error
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * norms.prod() or not norms.all():
        raise ScanError(
            f"{path}: singular affine {affine[:3, :3].round(3).tolist()}; repair the header's sform or qform"
        )
    warnings = []
    if int(header["sform_code"]) > 0 and qform is not None and not np.allclose(qform, affine, atol=1e-2):
        warnings.append("sform and qform disagree; the sform was used")
    return affine, tuple(warnings)


def _check_length(path: pathlib.Path, header: Header, shape: tuple[int, int, int]) -> None:
    """Refuse a header that promises more than its file can hold, before anything is allocated."""
    promised = int(np.prod(shape, dtype=object)) * int(header.get_data_dtype().itemsize)
    with _reading(path):
        held = path.stat().st_size
        with path.open("rb") as stream:
            compressed = stream.read(2) == GZIP_MAGIC
    if promised > (held * MAX_DEFLATE_RATIO if compressed else held - header.get_data_offset()):
        raise ScanError(
            f"{path}: header promises {promised} bytes of voxels (shape {shape}), the file has {held} bytes; "
            "it is truncated, copy or export it again"
        )


def mask_name(name: str) -> str:
    """The name of a scan's mask: the scan's without `_0000`, the channel number of nnU-Net and FLARE."""
    for extension in (".nii.gz", ".nii"):
        if name.endswith(extension):
            return name.removesuffix(extension).removesuffix("_0000") + extension
    return name


def write_mask(mask: NDArray[np.uint8], scan: Scan, path: pathlib.Path) -> None:
    """Write a mask on its scan's grid; it appears under its name when it is complete, or not at all.

    Args:
        mask: labels in the file's axis order, `scan.shape`, Fortran-contiguous.
        scan: gives affine, qform, sform, their codes, and units.
        path: of the mask; compressed if it ends with .gz.

    Raises:
        ScanError: the disk is full or the folder not writable.
    """
    header = scan.header.copy()
    header.set_data_shape(scan.shape)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # they are the CT's
    size = header.template_dtype.itemsize
    header["vox_offset"] = size + 4
    voxels = mask.reshape(-1, order="F").data
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        try:
            with partial.open("xb") as raw, _compressing(raw, path) as stream:
                stream.write(header.binaryblock + bytes(4))  # four zeros: no header extension follows
                for start in range(0, len(voxels), CHUNK_BYTES):
                    stream.write(voxels[start : start + CHUNK_BYTES])
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ScanError(
            f"{path}: the mask cannot be written ({error.strerror}); check the folder and its disk"
        ) from error


def _compressing(raw: BinaryIO, path: pathlib.Path) -> contextlib.AbstractContextManager[BinaryIO]:
    if path.suffix != ".gz":
        return contextlib.nullcontext(raw)
    compressing: contextlib.AbstractContextManager[BinaryIO] = igzip.IGzipFile("", "wb", 1, raw, mtime=0)
    return compressing
