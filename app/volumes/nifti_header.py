"""A NIfTI header, checked before anything is allocated. Fields that are not needed stop no scan."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import VolumeError
from . import gzip_file
from .gzip_file import Readable, open_bytes
from .volume import Geometry, implausible, is_rigid, is_singular

Header = Any  # nibabel is not typed: Nifti1Header or Nifti2Header

TEXT_BYTES = 40  # shown of a text in a scan's place
MAX_OFFSET = 1 << 31  # where voxels may begin; header extensions are far smaller
UNIT_MM = {1: 1000.0, 3: 0.001}  # metre, micron; every other code, undefined ones included, is read as millimetres
SAME_SPACING = 0.01  # share by which sform and pixdim may differ, since both are rounded
SPACE_UNIT_BITS = 0x07  # of xyzt_units
UNKNOWN_ORIENTATION = (
    "its orientation is not known, since the header has neither qform nor sform: left, front and head were guessed, "
    "and the labels may be wrong; set the header's sform"
)


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turn what can go wrong while reading a file into a `VolumeError` of one line."""
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


def checked_header(path: pathlib.Path) -> tuple[Header, Geometry, tuple[str, ...]]:
    """Read a file's header and check that it is a CT that can be segmented.

    Returns:
        The header as stored, the geometry of its best affine, and warnings about what does not stop us.

    Raises:
        VolumeError: it is not; the message says what was found, what is accepted and what to do.
    """
    header = _read_header(path)
    with np.errstate(all="ignore"):
        _check_values(path, header)
    geometry, warnings = checked_geometry(path, header)
    _check_length(path, header, geometry.shape)
    return header, geometry, (*warnings, *implausible(path, geometry))


def checked_geometry(path: pathlib.Path, header: Header) -> tuple[Geometry, tuple[str, ...]]:
    """The geometry of a header's best affine, and warnings about what does not stop us.

    Raises:
        VolumeError: it is not that of a 3-D scan.
    """
    with np.errstate(all="ignore"):
        shape = _checked_shape(path, header)
        affine, warnings = _checked_affine(path, header)
    unit_mm = UNIT_MM.get(int(header["xyzt_units"]) & SPACE_UNIT_BITS, 1.0)
    return replace(Geometry.of(shape, affine, unit_mm), orientation_known=UNKNOWN_ORIENTATION not in warnings), warnings


def _read_up_to(stream: Readable, size: int) -> bytes:
    """Read `size` bytes, or as many as there are."""
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _read_header(path: pathlib.Path) -> Header:
    with reading(path):
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
    if block.startswith(gzip_file.MAGIC):
        raise VolumeError(f"{path}: compressed twice; decompress it once (gunzip)")
    head = block[:TEXT_BYTES]
    text = " ".join(head.decode("ascii", "replace").split())
    if head.isascii() and text.isprintable():
        raise VolumeError(
            f"{path}: text and not a scan ('{text} ...'), such as a pointer of git-lfs or a server's error; "
            "fetch the scan itself"
        )
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
    elif qform is not None:
        affine = np.asarray(qform, np.float64)
    else:
        affine = np.asarray(header.get_base_affine(), np.float64)  # LAS, as SPM and nibabel take Analyze files
        warnings.append(UNKNOWN_ORIENTATION)
    if has_sform and is_singular(affine) and qform is not None and not is_singular(qform):
        warnings.append("unusable sform; the qform was used")
        affine, has_sform = np.asarray(qform, np.float64), False
    if is_singular(affine):
        raise VolumeError(
            f"{path}: singular affine {affine[:3, :3].round(3).tolist()}; repair the header's sform or qform"
        )
    if has_sform and qform is not None and not np.allclose(qform, affine, atol=1e-2):
        warnings.append("sform and qform disagree; the sform was used")
    edges, pixdim = np.linalg.norm(affine[:3, :3], axis=0), np.abs(header["pixdim"][1:4])
    if has_sform and is_rigid(affine) and not np.allclose(pixdim, edges, rtol=SAME_SPACING, atol=0):
        warnings.append(
            f"sform and pixdim disagree on the voxel spacing ({_listed(edges)} and {_listed(pixdim)}); the sform was "
            "used, and programs that use the other will show another size; repair the header"
        )
    return affine, tuple(warnings)


def _listed(spacing: Iterable[float]) -> str:
    return ", ".join(f"{float(value):.4g}" for value in spacing)


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
    with reading(path):
        held = path.stat().st_size
        compressed = gzip_file.is_gzip(path)
    if promised > (held * gzip_file.MAX_RATIO if compressed else held - header.get_data_offset()):
        raise VolumeError(
            f"{path}: header promises {promised} bytes of voxels (shape {shape}), the file has {held} bytes; "
            "it is truncated, copy or export it again"
        )


SIZES = (nib.Nifti1Header.template_dtype.itemsize, nib.Nifti2Header.template_dtype.itemsize)  # 348 and 540 bytes
DESCRIPTION = {SIZES[0]: slice(148, 228), SIZES[1]: slice(240, 320)}  # where `descrip` lies; nifti1.h, nifti2.h


def _size_of_header(head: bytes) -> int | None:
    """The size of the header that content begins with, in either byte order; None if that is not NIfTI's."""
    found = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")} & set(SIZES)
    return found.pop() if found else None


def description(head: bytes) -> bytes:
    """The description in a NIfTI header, given the first bytes of the content; empty where there is none."""
    size = _size_of_header(head)
    return head[DESCRIPTION[size]].rstrip(b"\0") if size else b""


def promised_length(head: bytes) -> int | None:
    """The length in bytes that a NIfTI header says its content has; None where that is not known, or not all there."""
    size = _size_of_header(head)
    if size is None or len(head) < size:
        return None
    header = (nib.Nifti1Header if size == SIZES[0] else nib.Nifti2Header)(head[:size], check=False)
    try:
        voxels = int(np.prod(header.get_data_shape()))
        return int(header.get_data_offset()) + voxels * int(header.get_data_dtype().itemsize)
    except (HeaderDataError, KeyError, ValueError):
        return None


def is_cut_in_header(head: bytes) -> bool:
    """Whether content begins as NIfTI does and ends within its header; so does none at all."""
    size = _size_of_header(head)
    return not head or (size is not None and len(head) < size)
