"""Small NIfTI files of every orientation, and damaged ones with the line that each must give."""

from __future__ import annotations

import gzip
import itertools
import pathlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app.results.nifti_mask import NiftiMask
from app.volumes import Volume, open_volume
from tests.tiny import segmentation_of

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("LR", "PA", "SI")) for codes in itertools.product(*order)
]
SHAPE_LPS = (5, 6, 7)  # x, y, z
SPACING_LPS = (0.5, 0.75, 2.0)


def volume_lps() -> NDArray[np.int16]:
    """Every voxel another value."""
    return (np.arange(np.prod(SHAPE_LPS), dtype=np.int16) - 100).reshape(SHAPE_LPS)


def affine_lps() -> NDArray[np.float64]:
    affine = np.diag([-SPACING_LPS[0], -SPACING_LPS[1], SPACING_LPS[2], 1.0])
    affine[:3, 3] = (11, 12, -13)
    return affine


def stored_as(axes: str, volume: NDArray[np.generic], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    lps, wanted = (nib.orientations.axcodes2ornt(codes) for codes in ("LPS", axes))
    turn = nib.orientations.ornt_transform(lps, wanted)
    turned_affine = affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)
    return nib.Nifti1Image(nib.orientations.apply_orientation(volume, turn), turned_affine)


def read_volume(path: pathlib.Path) -> NDArray[np.int16]:
    """The scan as (Z, Y, X), put together from its slices."""
    scan = open_volume(path)
    volume = np.full(scan.geometry.shape_zyx, 32767, np.int16)
    for z, plane in scan.slices():
        assert plane.flags.c_contiguous
        volume[z] = plane
    return volume


def write_mask(mask: NDArray[np.uint8], volume: Volume, path: pathlib.Path) -> None:
    """Write a mask as a run does."""
    NiftiMask().write(segmentation_of(volume, mask), path)


def save(path: pathlib.Path, volume: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> pathlib.Path:
    nib.save(nib.Nifti1Image(volume, affine_lps() if affine is None else affine, dtype=volume.dtype), path)
    return path


def edit(path: pathlib.Path, change: Callable[[bytearray], object]) -> None:
    """Change a .nii.gz file's plain content."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(data))


def put(offset: int, *values: float, form: str = "<f4") -> Callable[[bytearray], None]:
    packed = np.array(values, form).tobytes()

    def change(data: bytearray) -> None:
        data[offset : offset + len(packed)] = packed

    return change


def damaged(kind: str, path: pathlib.Path) -> str:
    """Write a bad file; return the pattern of the line it must give, without the file's name."""
    save(path, volume_lps())
    data = bytearray(gzip.decompress(path.read_bytes()))
    if kind == "truncated gz":
        save(path, np.random.default_rng(0).integers(-1000, 1000, (64, 64, 20)).astype(np.int16))
        path.write_bytes(path.read_bytes()[:-5000])
        return "the file ends too early (truncated); copy or export it again"
    if kind == "truncated by its last byte":
        path.write_bytes(path.read_bytes()[:-1])
        return "the file ends too early (truncated); copy or export it again"
    if kind == "checksum":
        zipped = bytearray(path.read_bytes())
        zipped[-8] ^= 1
        path.write_bytes(zipped)
        return "cannot be decoded (Error -6 Incorrect checksum found); copy or export it again"
    if kind == "empty":
        path.write_bytes(b"")
        return "the file is empty; copy or export it again"
    if kind == "text":
        path.write_text("this is no NIfTI file\n" * 100)
        return "text and not a scan ('this is no NIfTI file this is no NIfTI f ...'), such as a pointer of git-lfs"
    if kind == "another format":
        path.write_bytes(bytes(range(256)) * 4)
        return "not a NIfTI file; expected .nii or .nii.gz (convert DICOM with dcm2niix)"
    if kind == "compressed twice":
        path.write_bytes(gzip.compress(path.read_bytes()))
        return "compressed twice; decompress it once (gunzip)"
    if kind == "2-D":
        save(path, volume_lps()[:, :, 0])
        return "expected a 3-D CT, got shape (5, 6); stack the slices into one volume"
    if kind == "4-D with 3 volumes":
        save(path, np.zeros((4, 5, 6, 3), np.int16))
        return "expected a 3-D CT, got shape (4, 5, 6, 3); split the series into one file each"
    if kind == "RGB":
        save(path, np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
        return "expected a CT of int8..float64, got voxels of type RGB; export it as int16 HU"
    if kind == "complex":
        save(path, np.zeros((4, 5, 6), np.complex64))
        return "expected a CT of int8..float64, got voxels of type complex64; export it as int16 HU"
    if kind == "zero spacing":
        data[80:84] = np.array([0.0], "<f4").tobytes()
    elif kind == "NaN spacing":
        data[88:92] = np.array([np.nan], "<f4").tobytes()
    elif kind == "singular affine":
        data[280:296] = bytes(16)  # srow_x
    elif kind == "NaN affine":
        data[280:284] = np.array([np.nan], "<f4").tobytes()
    elif kind == "huge header":
        data[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    elif kind == "header pair":
        data[344:348] = b"ni1\0"
    elif kind == "no dimensions":
        data[40:42] = bytes(2)
    elif kind == "negative shape":
        data[42:44] = np.array([-5], "<i2").tobytes()
    elif kind == "unknown type":
        data[70:72] = np.array([77], "<i2").tobytes()
    path.write_bytes(gzip.compress(data))
    return {
        "zero spacing": "voxel spacing (0.0, 0.75, 2.0) mm; expected three positive numbers, repair the header",
        "NaN spacing": "voxel spacing (0.5, 0.75, nan) mm; expected three positive numbers, repair the header",
        "singular affine": "singular affine [[0.0, 0.0, 0.0], [0.0, -0.75, 0.0], [0.0, 0.0, 2.0]]; "
        "repair the header's sform or qform",
        "NaN affine": "singular affine [[nan, ",
        "huge header": "header promises 70362301923326 bytes of voxels (shape (32767, 32767, 32767)), the file has",
        "header pair": "header of an .hdr/.img pair; convert it to a single .nii.gz file",
        "no dimensions": "header claims 0 dimensions; expected a 3-D CT, export it again",
        "negative shape": "expected a 3-D CT, got shape (-5, 6, 7); export it again",
        "unknown type": "unknown voxel type 77; export it as int16 HU",
    }[kind]
