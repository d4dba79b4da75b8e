"""What every output offers."""

from __future__ import annotations

import logging
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

from .. import ownership
from ..errors import AppError, ResultError
from ..ownership import BLANK, PROGRAM, marked
from ..segmentation import Segmentation
from ..volumes import identity
from ..whole_file import beside, whole_file

__all__ = ["MARK", "PROGRAM", "Result", "beside", "each_by_itself", "write_whole"]

log = logging.getLogger(__name__)

MARK = BLANK.decode()  # what text has where its mark will be


def write_whole(path: pathlib.Path, content: bytes, is_ours: Callable[[pathlib.Path], bool] | None = None) -> None:
    """Write a file whole or not at all.

    Args:
        path: of it.
        content: of it; `MARK` in it becomes its mark.
        is_ours: tells whether a file of that name may be replaced; one that may not be is left alone. None: the caller
            has seen to that.

    Raises:
        ResultError: it cannot be written, or others wrote or changed a file of that name.
    """
    try:
        if is_ours is not None and path.exists() and not is_ours(path):
            raise ResultError(f"{path}: this program did not write it, or it was changed since; move it")
        with whole_file(path) as stream:
            stream.write(marked(content))
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror}); check the folder and its disk") from error


def each_by_itself(steps: Iterable[tuple[pathlib.Path, Callable[[], None]]]) -> None:
    """Take every step, whatever becomes of the others.

    Args:
        steps: each with the path that it writes to.

    Raises:
        ResultError: some failed; the line names the path and the reason of each.
    """
    problems = []
    for path, step in steps:
        try:
            step()
        except Exception as error:  # a fault in one file must not lose the others
            log.debug("%s", path, exc_info=error)
            line = str(error) if isinstance(error, AppError) else f"unexpected {type(error).__name__}: {error}"
            problems.append(line if line.startswith(str(path)) else f"{path}: {line}")
    if problems:
        raise ResultError(" ".join("; ".join(problems).split()))


class Result(ABC):
    """One kind of output.

    Attributes:
        requires: names of other outputs, of `results.RESULTS`, that are written along with it, before it.
        refers_to: those of them without which it is worthless.
        takes: names of the options of `results.make_results` that its constructor takes.
        folder_files: names of the files that `finish` writes.
        needs_dicom: whether the scan must have come as DICOM.
        ending: of a file that is complete.
        needs_scan: whether it is made from the scan's values too, see `inference.gathering.Gathering`.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    refers_to: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    folder_files: ClassVar[tuple[str, ...]] = ()
    needs_dicom = False
    needs_scan = False
    ending = b""

    @abstractmethod
    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Where the output of a case goes.

        Args:
            base: OUTPUT and the case's name, without an extension.
            mask_extension: of a NIfTI mask, where the scan's own name decides it; None: as this output likes.
        """

    def is_whole(self, path: pathlib.Path) -> bool:
        """Whether a case's output is there, and complete as far as can be told at a glance.

        A crash may leave a file empty, cut, or full of zeros. A file of others is taken for complete, as is one that
        cannot be read.
        """
        if identity(path) is None:
            return False
        try:
            return self.looks_whole(path)
        except OSError:
            return True

    def looks_whole(self, path: pathlib.Path) -> bool:
        """Whether a file that is there looks complete; this default suits files that carry a `MARK`.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as stream:
            head, size = stream.read(ownership.HEAD_BYTES), path.stat().st_size
        return any(head) and (ownership.fits_mark(head, size) or self.has_end(path))

    def has_end(self, path: pathlib.Path) -> bool:
        """Whether a file's content is complete in itself, though not as long as this program wrote it."""
        return path.read_bytes().endswith(self.ending)

    def wrote(self, path: pathlib.Path) -> bool:
        """Whether a file may be replaced: it is as this program wrote it, or what a crash left of that.

        Raises:
            ResultError: it may not be, for a reason that needs a line of its own.
        """
        return ownership.wrote(path) or not self.is_whole(path)

    @abstractmethod
    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the output of one case, whole or not at all.

        Raises:
            ResultError: it cannot be written.
        """

    def finish(self, output: pathlib.Path) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Write what belongs to the whole folder of outputs, at the end of a run.

        Raises:
            ResultError: it cannot be written.
        """
