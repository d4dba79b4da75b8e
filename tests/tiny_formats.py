"""The smallest formats that still keep every promise of one, to see that nothing but the table knows formats."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.errors import VolumeError
from app.volumes import FindOptions, Geometry, Scan, Slices, Volume
from app.volumes.read_ahead import ReadAhead
from app.volumes.volume import to_int16


@dataclass(frozen=True)
class ArrayVolume:
    """A volume whose voxels are in memory; see `Volume`."""

    path: pathlib.Path
    geometry: Geometry
    voxels: NDArray[np.int16]
    warnings: tuple[str, ...] = ()

    def slices(self) -> Slices:
        return ReadAhead(self._planes(), depth=2)

    def _planes(self) -> Generator[tuple[int, NDArray[np.int16]], None, None]:
        for z, plane in enumerate(self.geometry.orient(self.voxels)):
            yield z, np.ascontiguousarray(to_int16(plane))


class OneFileEach:
    """What the formats below have in common: a scan is a file, and its name is the file's."""

    accepts = "a tiny file"
    extension = ""

    @property
    def extensions(self) -> tuple[str, ...]:
        return (self.extension,) if self.extension else ()

    def find(self, files: Sequence[pathlib.Path], folder: pathlib.Path, options: FindOptions) -> list[Scan]:
        return [
            Scan(str(path.relative_to(folder)).removesuffix(self.extension), path, partial(self.open, path))
            for path in files
        ]

    def open(self, path: pathlib.Path) -> Volume:
        raise NotImplementedError

    @staticmethod
    def store(path: pathlib.Path, voxels: NDArray[np.int16], affine: NDArray[np.float64]) -> pathlib.Path:
        """Write a scan; returns its file, whose name may have got an extension."""
        raise NotImplementedError


class Npz(OneFileEach):
    """numpy's archive of `voxels` and `affine`, known by its extension."""

    extension = ".npz"

    def claims(self, path: pathlib.Path, head: bytes) -> bool:
        return path.name.endswith(self.extension)

    def open(self, path: pathlib.Path) -> Volume:
        try:
            with path.open("rb") as stream, np.load(stream) as arrays:
                voxels, affine = arrays["voxels"], arrays["affine"]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise VolumeError(f"{path}: not a whole file ({type(error).__name__}); copy it again") from error
        return ArrayVolume(path, Geometry.of(voxels.shape, affine), voxels)

    @staticmethod
    def store(path: pathlib.Path, voxels: NDArray[np.int16], affine: NDArray[np.float64]) -> pathlib.Path:
        np.savez(path.with_suffix(".npz"), voxels=voxels, affine=affine)
        return path.with_suffix(".npz")


class TextHeader(OneFileEach):
    """A line of JSON, then the voxels, last axis fastest; known by its first bytes, whatever its name is."""

    MAGIC = b"#TINY "

    def claims(self, path: pathlib.Path, head: bytes) -> bool:
        return head.startswith(self.MAGIC)

    def open(self, path: pathlib.Path) -> Volume:
        header, _, data = path.read_bytes().partition(b"\n")
        about = json.loads(header.removeprefix(self.MAGIC))
        if len(data) != 2 * np.prod(about["shape"]):
            raise VolumeError(f"{path}: {len(data)} bytes of voxels for shape {about['shape']}; copy it again")
        voxels = np.frombuffer(data, "<i2").reshape(about["shape"])
        return ArrayVolume(path, Geometry.of(voxels.shape, np.array(about["affine"])), voxels)

    @staticmethod
    def store(path: pathlib.Path, voxels: NDArray[np.int16], affine: NDArray[np.float64]) -> pathlib.Path:
        about = json.dumps({"shape": voxels.shape, "affine": affine.tolist()}).encode()
        path.write_bytes(TextHeader.MAGIC + about + b"\n" + voxels.astype("<i2").tobytes())
        return path


TINY_FORMATS: dict[str, OneFileEach] = {"npz": Npz(), "text header": TextHeader()}
